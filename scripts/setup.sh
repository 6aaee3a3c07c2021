# Sourced by ./run and ./test: makes .venv ready and leaves its path in $python. Quick when nothing has changed.
#   FEWSTEP_EXTRAS   extras to install (set by the caller)
# pip reads its own variables (PIP_INDEX_URL and so on), for example to take torch's CPU-only build on a machine without a GPU.
set -eu
root=$(cd "$(dirname "$0")" && pwd)
venv="$root/.venv"
python="$venv/bin/python"
stamp="$venv/.fewstep-$FEWSTEP_EXTRAS"
wanted=$(cat "$root/pyproject.toml" "$root/scripts/setup.sh" | sha256sum | cut -d ' ' -f 1)

if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    interpreter=""
    for name in python3 python3.13 python3.12 python3.11; do  # a name on the path may be a stub that does not run
        if "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then interpreter=$name; break; fi
    done
    if [ -z "$interpreter" ]; then
        echo "fewstep needs Python 3.11 or newer with its venv module; python3 is $(python3 --version 2>&1 || true)." >&2
        exit 2
    fi
    [ -x "$python" ] || { echo "Creating .venv ..." >&2; "$interpreter" -m venv "$venv"; }
    install() { "$python" -m pip --disable-pip-version-check install --quiet "$@"; }
    gpu=no
    if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then gpu=yes; fi
    if ! "$python" -c 'import torch' 2>/dev/null; then
        echo "Installing torch, the largest part ..." >&2
        # torch goes first, so that no other package's requirement picks its build.
        # its progress is shown: it takes minutes.
        wheel="torch==2.13.0"
        if [ $gpu = yes ]; then wheel="torch>=2.10"; fi
        "$python" -m pip --disable-pip-version-check install "$wheel" >&2
    fi
    extras=$FEWSTEP_EXTRAS
    [ $gpu = yes ] && extras="${extras:+$extras,}xformers"
    echo "Installing fewstep ..." >&2
    install -e "$root${extras:+[$extras]}"
    case ",$FEWSTEP_EXTRAS," in
        *,dev,*) install --no-deps "k-diffusion==0.1.1.post1" ;;  # a numerical reference; its own requirements are not needed
    esac
    # byte code is written while installing and not while running, which PYTHONDONTWRITEBYTECODE may forbid
    "$python" -m compileall -q "$root/gen" "$root/samplers" "$root/distill" "$root/customization" || true
    printf '%s\n' "$wanted" > "$stamp"
fi
