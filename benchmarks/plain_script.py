"""The shortest plain script for the same job, which `mvw infer` is timed against."""

import sys
from pathlib import Path

import mvw_shapes
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

weights = Path(mvw_shapes.__file__).parent / "weights"
processor = LlavaProcessor.from_pretrained(weights)
model = LlavaForConditionalGeneration.from_pretrained(weights)
image = {"type": "image", "image": Image.open(sys.argv[1])}
inputs = processor.apply_chat_template(
    [{"role": "user", "content": [image, {"type": "text", "text": sys.argv[2]}]}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
output = model.generate(**inputs, max_new_tokens=256)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
