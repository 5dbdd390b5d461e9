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

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from seedscope.engine.demo.stdlib import CORPUS_LIST, MODEL_DIR, Corpus, file_hash, load_corpus, standard_library_files

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


def train(corpus: Corpus, args: argparse.Namespace) -> None:
    """Train tokenizer and model and save both in float16."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([text for _, text in corpus.train], args.vocab)
    stream = torch.tensor(
        [t for _, text in corpus.train for t in [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]]
    )
    config = LlamaConfig(
        vocab_size=args.vocab, hidden_size=args.width, intermediate_size=args.width * 3, num_hidden_layers=args.layers,
        num_attention_heads=args.width // 32, max_position_embeddings=N_CTX, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.bos_token_id, initializer_range=0.02,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    print(f"{len(stream):,} training tokens, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    muon = torch.optim.Muon(hidden, lr=args.lr, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(rest, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0)
    forward = torch.compile(model) if args.compile else model
    generator = torch.Generator().manual_seed(0)
    began, step, progress, smooth = time.perf_counter(), 0, 0.0, None
    while progress < 1:
        progress = min((time.perf_counter() - began) / (60 * args.minutes), 1.0) if args.minutes else step / args.steps
        factor = min((step + 1) / 100, 1.0, (1 - progress) / 0.4)
        for optimizer in (muon, adam):
            optimizer.param_groups[0]["lr"] = args.lr * factor
        starts = torch.randint(len(stream) - N_CTX, (args.batch,), generator=generator)
        batch = stream[starts[:, None] + torch.arange(N_CTX)]
        batch[:, 0] = tokenizer.bos_token_id
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            logits = forward(batch).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        step += 1
        if step % 100 == 0 or step == args.print_early:
            rate = step * args.batch * N_CTX / (time.perf_counter() - began)
            print(f"step {step} {progress:.0%} loss {smooth:.3f} nats, {rate:,.0f} tokens/s", flush=True)
    model.eval()
    model.half().save_pretrained(MODEL_DIR)
    tokenizer.save_pretrained(MODEL_DIR)
    # Tied weights once, and nothing of the machine in the file.
    save_file(load_file(MODEL_DIR / "model.safetensors"), MODEL_DIR / "model.safetensors", {"format": "pt"})


def main() -> None:
    """Train, or only evaluate what is saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--print-early", type=int, default=0)
    parser.add_argument("--evaluate-only", action="store_true")
    args = parser.parse_args()
    if not args.evaluate_only:
        write_corpus_list()
        train(load_corpus(), args)
    model = LlamaForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MODEL_DIR)
    with torch.inference_mode():
        value = bits_per_byte(model, tokenizer, load_corpus().held_out)
    print(f"held-out bits per byte {value:.4f}", flush=True)


if __name__ == "__main__":
    main()
