"""OpenAI's own client against `fewstep serve`: a picture, and one that is seen while it is made."""

import base64
import sys
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8188/v1", api_key="none")
print("models:", ", ".join(model.id for model in client.models.list()))

made = client.images.generate(model="default", prompt="a red heart", extra_body={"seed": 7, "steps": 20})
Path("heart.png").write_bytes(base64.b64decode(made.data[0].b64_json or ""))

for event in client.images.generate(model="default", prompt="a cat", stream=True, partial_images=2, extra_body={"seed": 1}):
    name = "cat.png" if event.type == "image_generation.completed" else f"cat-{event.partial_image_index}.png"
    Path(name).write_bytes(base64.b64decode(event.b64_json))
    print(event.type, name)
