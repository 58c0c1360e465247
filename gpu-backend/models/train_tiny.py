"""Trains the shipped model from nothing: python train_tiny.py --out tiny --scratch /some/folder

Builds the tokenizer, trains (again from the last checkpoint when interrupted), evaluates the exported bf16 weights on
held-out questions and writes the checkpoint folder. The learning rate follows the clock, not the step count, so a
slower machine gives a weaker model rather than a longer wait.
"""

import argparse
import json
import multiprocessing
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import chats
import evaluate
import tiny_tokenizer
from tiny_model import TinyQwen2, export, load

MUON_LR, ADAM_LR, WARMUP_STEPS, LONG_EVERY = 0.02, 3e-3, 60, 3

PER_TASK, PER_RECALL = 300, 100  # questions of the final evaluation


def optimizers(model):
    """Muon for the hidden matrices, AdamW for the embedding, norms and biases."""
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(progress, step):
    """Warm up, stay, then fall in a line over the last 40% of the time."""
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.01, (1.0 - progress) / 0.4))


def learn(model, body, batches):
    """One forward and backward pass a bucket; the gradient is that of the mean over all weighted tokens of the step."""
    total = sum(float(w.sum()) for _, w in batches.values())
    losses = {}
    for bucket, (ids, weights) in batches.items():
        ids, weights = torch.from_numpy(ids), torch.from_numpy(weights)
        wanted = weights[:, 1:] > 0
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.logits(body(ids[:, :-1].contiguous())[wanted])
        each = F.cross_entropy(logits.float(), ids[:, 1:][wanted], reduction="none") * weights[:, 1:][wanted]
        (each.sum() / total).backward()
        losses[bucket] = each.sum().item() / float(weights.sum())
    return losses


def train(args, tokenizer, out, scratch):
    torch.manual_seed(args.seed)
    model = TinyQwen2()
    opts = optimizers(model)
    state = dict(step=0, seconds=0.0, tokens=0, before=dict(steps=0, tokens=0, minutes=0.0))
    if args.init:
        model.load_state_dict(load(args.init).state_dict())
        model.train()
        state["before"] = json.loads((args.init / "eval.json").read_text())["training"]
    file = scratch / "checkpoint.pt"
    if file.exists():
        saved = torch.load(file)
        model.load_state_dict(saved["model"])
        for opt, s in zip(opts, saved["opts"]):
            opt.load_state_dict(s)
        state = saved["state"]
    body = torch.compile(model, dynamic=False) if args.compile else model
    queue = multiprocessing.Queue(8)
    seed = args.seed * 1000 + state["before"]["steps"] + state["step"]
    multiprocessing.Process(target=chats.produce, args=(queue, out / "tokenizer.json", seed, list(chats.BUCKETS)), daemon=True).start()
    encoder = chats.Encoder(tokenizer)
    budget, last = args.minutes * 60, time.time()
    next_eval = state["seconds"] + args.eval_every * 60
    next_save, mean = state["seconds"] + 180, {}
    while state["seconds"] < budget:
        batches = queue.get()
        if state["step"] < args.short_steps or state["step"] % LONG_EVERY:
            batches.pop("long", None)
        scale = args.rate * rate(state["seconds"] / budget, state["step"])
        for opt, lr in zip(opts, (MUON_LR, ADAM_LR)):
            for group in opt.param_groups:
                group["lr"] = lr * scale
        losses = learn(model, body, batches)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        state["step"] += 1
        state["tokens"] += sum(int((w.cumsum(1) < w.sum(1, keepdims=True)).sum()) for _, w in batches.values())
        now = time.time()
        state["seconds"], last = state["seconds"] + now - last, now
        for k, v in losses.items():
            mean[k] = mean.get(k, v) * 0.95 + v * 0.05
        if state["step"] % 25 == 0:
            print(f"step {state['step']} {state['seconds'] / 60:.1f} min lr x{scale:.2f}", {k: round(v, 4) for k, v in mean.items()}, flush=True)
        if state["seconds"] >= next_save or state["seconds"] >= budget:
            next_save = state["seconds"] + 180
            part = scratch / "checkpoint.part"
            torch.save(dict(model=model.state_dict(), opts=[o.state_dict() for o in opts], state=state), part)
            part.rename(file)
        if state["seconds"] >= next_eval:
            next_eval = state["seconds"] + args.eval_every * 60
            table = evaluate.accuracy(model, encoder, per_task=40, per_recall=8)
            print("accuracy", {k: round(v, 3) for k, v in table.items()}, flush=True)
    return model, state


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny")
    parser.add_argument("--scratch", type=Path, required=True, help="checkpoints; a second run goes on from them")
    parser.add_argument("--init", type=Path, help="a checkpoint folder to go on from, its training counted in eval.json (optimizers start anew)")
    parser.add_argument("--rate", type=float, default=1.0, help="of the learning rates; less to go on gently from --init")
    parser.add_argument("--minutes", type=float, default=92)
    parser.add_argument("--eval-every", type=float, default=8, help="minutes")
    parser.add_argument("--short-steps", type=int, default=300, help="steps before the long rows join")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--only", choices=("tokenizer", "export", "evaluate"), help="stop after the tokenizer, export the last checkpoint, or evaluate --out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.scratch.mkdir(parents=True, exist_ok=True)

    fresh = args.only == "tokenizer" or not (args.out / "tokenizer.json").exists()
    if fresh:
        tiny_tokenizer.build(args.out)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    if args.only == "tokenizer":
        export(TinyQwen2(), args.out, tokenizer)
        return
    if args.only is None:
        model, state = train(args, tokenizer, args.out, args.scratch)
        export(model, args.out, tokenizer)
    elif args.only == "export":
        saved = torch.load(args.scratch / "checkpoint.pt")
        model, state = TinyQwen2(), saved["state"]
        model.load_state_dict(saved["model"])
        export(model, args.out, tokenizer)
        return
    else:
        state = torch.load(args.scratch / "checkpoint.pt")["state"]
    failures = {}
    table = evaluate.accuracy(load(args.out), chats.Encoder(tokenizer), seed=7, per_task=PER_TASK, per_recall=PER_RECALL, failures=failures)
    for name, wrong in failures.items():
        for user, answer, got in wrong[:4]:
            print(f"  {name}: {user!r} -> {tokenizer.decode(got)!r}, not {answer!r}")
    for name, value in table.items():
        print(f"| {name} | {100 * value:.1f}% |")
    before = state["before"]
    training = dict(
        steps=before["steps"] + state["step"],
        tokens=before["tokens"] + state["tokens"],
        minutes=round(before["minutes"] + state["seconds"] / 60, 1),
        parameters=sum(p.numel() for p in TinyQwen2().parameters()),
    )
    result = dict(held_out_accuracy=table, questions_per_task=PER_TASK, questions_per_long_recall=PER_RECALL, training=training)
    (args.out / "eval.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
