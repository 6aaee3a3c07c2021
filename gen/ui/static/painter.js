// A picture to paint on: layers of a brush, boxes that are dragged, borders that are dragged outwards. Pixels are those of the
// picture, whatever size it is shown at. Every layer is a canvas of its own; the server asks for them as PNGs when it needs them.
const UNDO = 30; // steps that can be taken back
const GRID = 8; // pixels: what a border moves by
const MARGIN = 0.94; // of the frame that the picture fills

const context = (canvas) => canvas.getContext("2d", { willReadFrequently: true });

export default {
  template: `
    <div ref="frame" class="fs-paint" :data-mode="mode"
      @pointerdown="down" @pointermove="move" @pointerup="up" @pointercancel="up" @pointerleave="leave">
      <canvas ref="canvas" tabindex="0" role="application" :aria-label="label" :class="'fs-tool-' + tool" @keydown="key"></canvas>
      <template v-if="mode === 'extend' && shown">
        <div v-for="side in sides" :key="side" class="fs-edge" :style="place(side)" :data-edge="side"
          @pointerdown="grab(side, $event)" @pointermove="drag" @pointerup="drop" @pointercancel="drop"></div>
      </template>
    </div>`,
  props: {
    src: String, mode: String, tool: String, size: Number, layers: Array, active: Number, width: Number, height: Number,
    extend: Object, label: String,
  },
  data: () => ({ sides: ["left", "right", "top", "bottom"], shown: null }),
  mounted() {
    this.masks = []; // one {canvas, box} for each layer
    this.past = [];
    this.future = [];
    this.cursor = null;
    this.margins = { left: 0, right: 0, top: 0, bottom: 0, ...this.extend };
    this.picture = null;
    this.watcher = new ResizeObserver(() => this.fit());
    this.watcher.observe(this.$refs.frame);
    this.load();
  },
  unmounted() { this.watcher.disconnect(); },
  watch: {
    src() { this.load(); },
    mode() { this.resize(); },
    width() { this.resize(); },
    height() { this.resize(); },
    layers() { this.draw(); },
    active() { this.draw(); },
    extend(value) { if (!this.grabbed) { this.margins = { left: 0, right: 0, top: 0, bottom: 0, ...value }; this.resize(); } },
  },
  methods: {
    // ---- size ----
    load() {
      if (!this.src) { this.picture = null; this.resize(); return; }
      const picture = new Image();
      picture.onload = () => { if (picture.src.endsWith(this.src)) { this.picture = picture; this.resize(); this.$emit("loaded", this.inner()); } };
      picture.src = this.src;
    },
    inner() { // of the picture itself, or of the empty sheet
      return this.picture && this.mode !== "sheet"
        ? { width: this.picture.naturalWidth, height: this.picture.naturalHeight }
        : { width: this.width || 0, height: this.height || 0 };
    },
    outer() {
      const { width, height } = this.inner(), m = this.margins;
      return this.mode === "extend" ? { width: width + m.left + m.right, height: height + m.top + m.bottom } : { width, height };
    },
    resize() { // the canvas to what is painted on; layers of another size begin anew
      if (!this.$refs.canvas) return;
      const { width, height } = this.inner();
      if (this.masks.length && (this.masks[0].canvas.width !== width || this.masks[0].canvas.height !== height)) this.reset();
      this.fit();
    },
    fit() {
      const frame = this.$refs.frame, canvas = this.$refs.canvas, { width, height } = this.outer();
      if (!width || !height || !frame) { canvas.style.visibility = "hidden"; this.shown = null; return; }
      if (!this.grabbed) this.scale = Math.min((frame.clientWidth / width) * MARGIN, (frame.clientHeight / height) * MARGIN);
      const shown = { width: width * this.scale, height: height * this.scale };
      const dots = window.devicePixelRatio || 1; // the picture is drawn at the size that it is shown at, so that lines are sharp
      canvas.width = Math.max(1, Math.round(shown.width * dots));
      canvas.height = Math.max(1, Math.round(shown.height * dots));
      canvas.style.visibility = "visible";
      canvas.style.width = `${shown.width}px`;
      canvas.style.height = `${shown.height}px`;
      this.shown = { ...shown, left: (frame.clientWidth - shown.width) / 2, top: (frame.clientHeight - shown.height) / 2 };
      this.draw();
    },
    // ---- layers ----
    layer(number) {
      while (this.masks.length <= number) {
        const { width, height } = this.inner(), canvas = document.createElement("canvas");
        canvas.width = width;
        canvas.height = height;
        this.masks.push({ canvas, box: null });
      }
      return this.masks[number];
    },
    remember() {
      const number = this.active || 0, { canvas, box } = this.layer(number);
      this.past.push({ number, box, pixels: context(canvas).getImageData(0, 0, canvas.width, canvas.height) });
      if (this.past.length > UNDO) this.past.shift();
      this.future = [];
    },
    step(from, to) {
      const state = from.pop();
      if (!state) return;
      const one = this.layer(state.number), pen = context(one.canvas);
      to.push({ number: state.number, box: one.box, pixels: pen.getImageData(0, 0, one.canvas.width, one.canvas.height) });
      pen.putImageData(state.pixels, 0, 0);
      one.box = state.box;
      this.changed();
    },
    undo() { this.step(this.past, this.future); },
    redo() { this.step(this.future, this.past); },
    clear() {
      if (!this.shown) return;
      this.remember();
      const one = this.layer(this.active || 0);
      context(one.canvas).clearRect(0, 0, one.canvas.width, one.canvas.height);
      one.box = null;
      this.changed();
    },
    invert() {
      if (!this.shown) return;
      this.remember();
      const one = this.layer(this.active || 0), pen = context(one.canvas);
      pen.globalCompositeOperation = "source-out";
      pen.fillStyle = "#fff";
      pen.fillRect(0, 0, one.canvas.width, one.canvas.height);
      pen.globalCompositeOperation = "source-over";
      one.box = null;
      this.changed();
    },
    drop_layer(number) {
      this.masks.splice(number, 1);
      this.past = this.past.filter((state) => state.number !== number).map((state) => (state.number > number ? { ...state, number: state.number - 1 } : state));
      this.future = [];
      this.draw();
    },
    reset() { this.masks = []; this.past = []; this.future = []; this.changed(); },
    share(number) {
      const { canvas } = this.layer(number), data = context(canvas).getImageData(0, 0, canvas.width, canvas.height).data;
      let sum = 0;
      for (let i = 3; i < data.length; i += 4) sum += data[i];
      return sum / (255 * canvas.width * canvas.height);
    },
    changed() {
      this.draw();
      const number = this.active || 0;
      this.$emit("painted", { layer: number, share: this.shown && this.masks[number] ? this.share(number) : 0 });
    },
    export_layers() { // {box} in pixels, {png} white on black, or null for what is empty
      return (this.layers || [null]).map((_, number) => {
        if (!this.shown || !this.masks[number] || this.share(number) === 0) return null;
        const { canvas, box } = this.masks[number];
        if (box) return { box };
        const sheet = document.createElement("canvas"), pen = context(sheet);
        sheet.width = canvas.width;
        sheet.height = canvas.height;
        pen.fillRect(0, 0, sheet.width, sheet.height);
        pen.drawImage(canvas, 0, 0);
        return { png: sheet.toDataURL("image/png") };
      });
    },
    // ---- shown ----
    draw() {
      const canvas = this.$refs.canvas;
      if (!canvas || !this.shown) return;
      const pen = canvas.getContext("2d"), { width, height } = this.inner(), m = this.margins;
      const [x, y] = this.mode === "extend" ? [m.left, m.top] : [0, 0];
      const whole = this.outer();
      pen.setTransform(canvas.width / whole.width, 0, 0, canvas.height / whole.height, 0, 0);
      pen.clearRect(0, 0, whole.width, whole.height);
      if (this.mode === "extend") this.checker(pen, whole);
      pen.fillStyle = "#fff";
      pen.fillRect(x, y, width, height);
      if (this.picture && this.mode !== "sheet") pen.drawImage(this.picture, x, y, width, height);
      if (this.mode === "extend" || this.mode === "view") return;
      (this.layers || []).forEach((row, number) => {
        const one = this.masks[number];
        if (!one) return;
        pen.globalAlpha = number === this.active ? 0.6 : 0.42;
        pen.drawImage(this.tinted(one.canvas, row.colour), 0, 0);
        pen.globalAlpha = 1;
        if (one.box && this.layers.length > 1) this.outline(pen, one.box, row, number);
      });
      if (this.frame) { pen.strokeStyle = "#000"; pen.setLineDash([4, 4]); pen.lineWidth = 1 / this.scale; pen.strokeRect(...this.frame); pen.setLineDash([]); }
      if (this.cursor && this.tool !== "box") this.ring(pen);
    },
    tinted(mask, colour) {
      const sheet = document.createElement("canvas"), pen = context(sheet);
      sheet.width = mask.width;
      sheet.height = mask.height;
      pen.drawImage(mask, 0, 0);
      pen.globalCompositeOperation = "source-in";
      pen.fillStyle = colour;
      pen.fillRect(0, 0, sheet.width, sheet.height);
      return sheet;
    },
    outline(pen, [x, y, wide, tall], row, number) {
      const size = 13 / this.scale;
      pen.strokeStyle = row.colour;
      pen.lineWidth = (number === this.active ? 3 : 1.5) / this.scale;
      pen.strokeRect(x, y, wide, tall);
      pen.font = `600 ${size}px system-ui, sans-serif`;
      pen.fillStyle = "#111";
      pen.textBaseline = "top";
      pen.save();
      pen.beginPath();
      pen.rect(x, y, wide, tall);
      pen.clip();
      pen.fillText(row.label || "", x + size * 0.5, y + size * 0.5);
      pen.restore();
    },
    ring(pen) {
      const [x, y] = this.cursor;
      for (const [colour, width] of [["#fff", 3], ["#111", 1.2]]) {
        pen.beginPath();
        pen.arc(x, y, this.size / 2, 0, 2 * Math.PI);
        pen.strokeStyle = colour;
        pen.lineWidth = width / this.scale;
        pen.stroke();
      }
    },
    checker(pen, whole) {
      const side = 8 / this.scale;
      pen.fillStyle = "#8883";
      for (let row = 0; row * side < whole.height; row += 1)
        for (let column = row % 2; column * side < whole.width; column += 2) pen.fillRect(column * side, row * side, side, side);
    },
    // ---- brush and boxes ----
    at(event) {
      const edge = this.$refs.canvas.getBoundingClientRect();
      return [(event.clientX - edge.left) / this.scale, (event.clientY - edge.top) / this.scale];
    },
    paints() { return this.shown && this.mode !== "extend" && this.mode !== "view" && (this.layers || []).length > 0; },
    down(event) {
      this.$refs.canvas.focus({ preventScroll: true });
      if (!this.paints() || event.button > 0) return;
      event.preventDefault();
      this.$refs.frame.setPointerCapture(event.pointerId);
      this.remember();
      this.from = this.last = this.at(event);
      this.drawing = true;
      if (this.tool !== "box") this.stroke(this.last, this.last, this.tool === "erase" || event.buttons === 32);
      this.draw();
    },
    move(event) {
      if (!this.paints()) return;
      const point = this.at(event);
      this.cursor = point;
      if (this.drawing && this.tool === "box") this.frame = this.between(this.from, point);
      else if (this.drawing) { this.stroke(this.last, point, this.tool === "erase" || event.buttons === 32); this.last = point; }
      this.draw();
    },
    up() {
      if (!this.drawing) return;
      this.drawing = false;
      if (this.tool === "box" && this.frame) this.fill(this.frame);
      else if (this.tool === "box") this.past.pop();
      this.frame = null;
      this.changed();
    },
    leave() { if (!this.drawing) { this.cursor = null; this.draw(); } },
    between([x0, y0], [x1, y1]) {
      const { width, height } = this.inner(), clamp = (value, most) => Math.round(Math.min(Math.max(value, 0), most));
      const left = clamp(Math.min(x0, x1), width), top = clamp(Math.min(y0, y1), height);
      return [left, top, clamp(Math.max(x0, x1), width) - left, clamp(Math.max(y0, y1), height) - top];
    },
    fill(box) {
      const one = this.layer(this.active || 0), pen = context(one.canvas);
      if (box[2] < 1 || box[3] < 1) return;
      if ((this.layers || []).length > 1 || this.mode === "sheet") pen.clearRect(0, 0, one.canvas.width, one.canvas.height);
      const alone = this.share(this.active || 0) === 0;
      pen.fillStyle = "#fff";
      pen.fillRect(...box);
      one.box = alone ? box : null;
    },
    stroke(a, b, away) {
      const one = this.layer(this.active || 0), pen = context(one.canvas);
      pen.globalCompositeOperation = away ? "destination-out" : "source-over";
      pen.strokeStyle = pen.fillStyle = "#fff";
      pen.lineWidth = this.size;
      pen.lineCap = "round";
      pen.beginPath();
      pen.moveTo(...a);
      pen.lineTo(b[0] + 0.001, b[1]);
      pen.stroke();
      pen.globalCompositeOperation = "source-over";
      one.box = null;
    },
    key(event) {
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      const control = event.ctrlKey || event.metaKey;
      if (control && event.key.toLowerCase() === "z") { event.shiftKey ? this.redo() : this.undo(); }
      else if (control && event.key.toLowerCase() === "y") this.redo();
      else if (control || event.altKey) return;
      else if (event.key === "[" || event.key === "]") this.$emit("brush", event.key === "]" ? 1 : -1);
      else if ("bex".includes(event.key)) this.$emit("tool", { b: "brush", e: "erase", x: "box" }[event.key]);
      else if (moves[event.key] && this.paints()) {
        const { width, height } = this.inner(), by = Math.max(this.size / 2, 1), [x, y] = this.cursor || [width / 2, height / 2];
        this.cursor = [Math.min(Math.max(x + by * moves[event.key][0], 0), width), Math.min(Math.max(y + by * moves[event.key][1], 0), height)];
        this.draw();
      } else if (event.key === " " && this.paints()) {
        const { width, height } = this.inner();
        this.cursor = this.cursor || [width / 2, height / 2];
        this.remember();
        this.stroke(this.cursor, this.cursor, this.tool === "erase");
        this.changed();
      } else return;
      event.preventDefault();
    },
    // ---- borders ----
    place(side) {
      const { left, top, width, height } = this.shown, thick = 22;
      if (side === "left" || side === "right")
        return { left: `${left + (side === "right" ? width : 0) - thick / 2}px`, top: `${top}px`, width: `${thick}px`, height: `${height}px` };
      return { left: `${left}px`, top: `${top + (side === "bottom" ? height : 0) - thick / 2}px`, width: `${width}px`, height: `${thick}px` };
    },
    grab(side, event) {
      event.preventDefault();
      event.target.setPointerCapture(event.pointerId);
      this.grabbed = { side, at: [event.clientX, event.clientY], from: this.margins[side] };
    },
    drag(event) {
      if (!this.grabbed) return;
      const { side, at, from } = this.grabbed, along = side === "left" || side === "right" ? event.clientX - at[0] : event.clientY - at[1];
      // the picture stays in the middle of the frame, so that a border moves half of what it grows by: twice, and it keeps to the pointer
      const out = (2 * (side === "left" || side === "top" ? -along : along)) / this.scale;
      this.margins = { ...this.margins, [side]: Math.min(Math.max(Math.round((from + out) / GRID) * GRID, 0), 4096) };
      this.fit();
    },
    drop() {
      if (!this.grabbed) return;
      this.grabbed = null;
      this.fit();
      this.$emit("extended", this.margins);
    },
  },
};
