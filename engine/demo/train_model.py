"""Train the embedded language model and its tokenizer: `python -m seedscope.engine.demo.train_model [--minutes M]`.

A Llama-class model (RMSNorm, rotary positions, SwiGLU, tied embeddings) on the training half of the corpus; Muon for
the hidden matrices, Adam for embeddings and norms, warm-up, constant rate, linear decay over the last 40 %. Writes
`corpus.json` and `model/` (float16), then prints held-out bits per byte.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from seedscope.engine.demo.stdlib import CORPUS_LIST, MODEL_DIR, file_hash, load_corpus, standard_library_files

BOS = "<|bos|>"
N_CTX = 512


def write_corpus_list() -> None:
    """Record which files the model is trained on, with their hashes."""
    files = {path: file_hash(text) for path, text in standard_library_files().items()}
    listing = {"python": platform.python_version(), "files": files}
    CORPUS_LIST.write_text(json.dumps(listing, indent=0) + "\n")


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with one special token, trained on the training documents only."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token=BOS, model_max_length=N_CTX)


def bits_per_byte(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, documents: list[tuple[str, str]]
) -> float:
    """Held-out code length in bits per UTF-8 byte over non-overlapping windows, each begun by BOS."""
    bos, n_bytes, nats = tokenizer.bos_token_id, 0, 0.0
    for _, text in documents:
        n_bytes += len(text.encode())
        ids = tokenizer(text)["input_ids"]
        windows = [[bos, *ids[i : i + N_CTX - 1]] for i in range(0, len(ids), N_CTX - 1)]
        full = torch.tensor([w for w in windows if len(w) == N_CTX]).view(-1, N_CTX)
        batches = [b for b in full.split(16) if len(b)] + [torch.tensor([w]) for w in windows if len(w) < N_CTX]
        for batch in batches:
            logits = model(batch).logits[:, :-1].float()
            nats += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
            ).item()
    return nats / math.log(2) / n_bytes


@dataclass(frozen=True)
class ModelSettings:
    """Size and training of a language model; the defaults are the embedded one's."""

    seed: int = 0  # of the weights, and of the order of windows
    steps: int = 4000
    minutes: float = 0  # instead of steps, where it is above 0
    width: int = 128
    layers: int = 6
    vocab: int = 4096
    window: int = N_CTX  # tokens that are read at once
    batch: int = 16  # windows per step
    lr: float = 3e-3
    bf16: bool = False
    compile: bool = False


def train(
    texts: list[str],
    settings: ModelSettings,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
    print_early: int = 0,
) -> float:
    """Train a model and save it with its tokenizer to `folder`, in float16; returns the smoothed last loss, nats per token.

    `report` gets (tokens seen, tokens in all) after every step. The caller's random numbers are not touched.
    """
    stream = torch.tensor(
        [t for text in texts for t in [tokenizer.bos_token_id, *tokenizer(text, verbose=False)["input_ids"]]]
    )
    config = LlamaConfig(
        vocab_size=settings.vocab, hidden_size=settings.width, intermediate_size=settings.width * 3,
        num_hidden_layers=settings.layers, num_attention_heads=settings.width // 32, max_position_embeddings=N_CTX,
        tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.bos_token_id,
        initializer_range=0.02,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = LlamaForCausalLM(config)
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = torch.optim.Muon(hidden, lr=settings.lr, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0)
    forward = torch.compile(model) if settings.compile else model
    generator = torch.Generator().manual_seed(settings.seed)
    began, step, progress, smooth = time.perf_counter(), 0, 0.0, 0.0
    per_step = settings.batch * settings.window
    while progress < 1:
        spent = (time.perf_counter() - began) / (60 * settings.minutes) if settings.minutes else step / settings.steps
        progress = min(spent, 1.0)
        factor = min((step + 1) / 100, 1.0, (1 - progress) / 0.4)
        for optimizer in (muon, adam):
            optimizer.param_groups[0]["lr"] = settings.lr * factor
        starts = torch.randint(len(stream) - settings.window, (settings.batch,), generator=generator)
        batch = stream[starts[:, None] + torch.arange(settings.window)]
        batch[:, 0] = tokenizer.bos_token_id
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            logits = forward(batch).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad()
        smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
        step += 1
        report(min(step, settings.steps) * per_step, settings.steps * per_step)
        if print_early and (step % 100 == 0 or step == print_early):
            rate = step * per_step / (time.perf_counter() - began)
            print(f"step {step} {progress:.0%} loss {smooth:.3f} nats, {rate:,.0f} tokens/s", flush=True)
    model.eval()
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Tied weights once, and nothing of the machine in the file.
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights, {"format": "pt"})
    return smooth


def main() -> None:
    """Train, or only evaluate what is saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    plain = ModelSettings()
    for name, kind in (
        ("seed", int),
        ("minutes", float),
        ("steps", int),
        ("width", int),
        ("layers", int),
        ("vocab", int),
    ):
        parser.add_argument(f"--{name}", type=kind, default=getattr(plain, name))
    for name, kind in (("window", int), ("batch", int), ("lr", float)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(plain, name))
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--print-early", type=int, default=100)
    parser.add_argument("--evaluate-only", action="store_true")
    args = parser.parse_args()
    if not args.evaluate_only:
        write_corpus_list()
        texts = [text for _, text in load_corpus().train]
        settings = ModelSettings(**{name: value for name, value in vars(args).items() if name in vars(plain)})
        train(texts, settings, train_tokenizer(texts, args.vocab), MODEL_DIR, print_early=args.print_early)
    model = LlamaForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MODEL_DIR)
    with torch.inference_mode():
        value = bits_per_byte(model, tokenizer, load_corpus().held_out)
    print(f"held-out bits per byte {value:.4f}", flush=True)


if __name__ == "__main__":
    main()
