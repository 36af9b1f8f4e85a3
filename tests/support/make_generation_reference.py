"""Write tests/reference/generation/smollm2.json: what transformers generates, greedily.

Run it with an environment that has torch, transformers and gguf:

    python -m tests.support.make_generation_reference DIRECTORY_OF_SMOLLM2_135M_Q4_1

Every prompt goes through PyTorch alone, in float32, for 64 tokens without a stop. The smallest
lead of the best logit over the second best is kept too: where it is larger than the differences
of two float32 implementations, their tokens must be the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import transformers

from tests.support.paths import REFERENCE

OUTPUT = REFERENCE / "generation" / "smollm2.json"
NEW_TOKENS = 64
# Of several lengths, so that a batch of them is padded.
PROMPTS = (
    "The capital of Japan is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):",
    "Water boils when",
    "The three primary colours are red,",
    "Dear Sir or Madam,\n\nI am writing to ask about",
    "A film to remember. The acting is superb, the story moves, and the music",
    "Q: Why is the sky blue?\nA:",
    "La tour Eiffel est",
    "Hello",
)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    (name,) = (path.name for path in directory.glob("*.gguf"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, gguf_file=name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, gguf_file=name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    # Without a stop, so that every prompt gives as many tokens to compare.
    model.generation_config.eos_token_id = None
    rows = [generate(model, tokenizer, prompt) for prompt in PROMPTS]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    content = {"file": name, "versions": versions, "rows": rows}
    OUTPUT.write_text(json.dumps(content, separators=(",", ":")) + "\n")


def generate(model: torch.nn.Module, tokenizer: object, prompt: str) -> dict[str, object]:
    """Give a prompt's tokens, the ones that follow, and the smallest lead of any of them."""
    inputs = tokenizer(prompt, return_tensors="pt")
    found = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best, second = torch.cat(found.logits).topk(2, dim=-1).values.unbind(-1)
    length = inputs["input_ids"].shape[1]
    return {
        "prompt": prompt,
        "input_ids": inputs["input_ids"][0].tolist(),
        "new_tokens": found.sequences[0, length:].tolist(),
        "smallest_lead": round((best - second).min().item(), 6),
    }


if __name__ == "__main__":
    main()
