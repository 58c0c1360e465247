"""transformers beside our engine: the same weights, device and lengths, added to the results that qe_gpu_bench wrote.

    transformers_peer.py RESULTS.json FOLDER [DEVICE]

Compares our logits with transformers' in fp32, and transformers' own in bf16 with the same, so that it shows how much
of the difference is the format's. Then times it in bf16: eager decoding over a growing cache, as `generate` does it.
Exit status 1 when our logits are further away than half as much again as theirs; 0 when there is nothing to compare with.
"""

import copy
import json
import struct
import sys
import time

ENGINE = "transformers"


class Results:
    def __init__(self, path):
        self.path = path
        with open(path, encoding="utf-8") as file:
            self.all = json.load(file)

    def add(self, what, engine=ENGINE, **row):
        for other in self.all["rows"]:
            if "value" in row and all(other.get(name) == row.get(name) for name in ("batch", "prompt", "output", "unit")) and other["what"] == what:
                faster = other["value"] / row["value"]
                row["ours_over_this"] = 1 / faster if row["unit"] == "s" else faster
        self.all["rows"].append({"what": what, "engine": engine, **row})
        with open(self.path, "w", encoding="utf-8") as file:
            json.dump(self.all, file, indent=1)
        figures = (f"{name} {value:.5g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items())
        print(f"{what:<12} {engine:<12} {'  '.join(figures)}", flush=True)


def difference(got, want):
    """Of logits [tokens][vocabulary]: the worst row's relative error, the mean divergence in nats, the share of equal first choices."""
    error = ((got - want).norm(dim=-1) / want.norm(dim=-1)).max().item()
    log_got, log_want = got.log_softmax(-1), want.log_softmax(-1)
    kl = (log_want.exp() * (log_want - log_got)).sum(-1).mean().item()
    same = (got.argmax(-1) == want.argmax(-1)).float().mean().item()
    return {"worst_relative_error": error, "kl": kl, "same_top": same}


def compare(results, model, folder, device, torch):
    """Leaves the model in bf16. @returns whether ours are near enough."""
    try:
        with open(f"{folder}/logits.bin", "rb") as file:
            tokens, vocab = struct.unpack("<II", file.read(8))
            ids = torch.frombuffer(bytearray(file.read(4 * tokens)), dtype=torch.int32).long()[None].to(device)
            ours = torch.frombuffer(bytearray(file.read()), dtype=torch.float32).view(tokens, vocab).to(device)
    except FileNotFoundError:
        model.to(torch.bfloat16)
        return True
    want = model(ids).logits[0].float()
    model.to(torch.bfloat16)
    theirs = difference(model(ids).logits[0].float(), want)
    mine = difference(ours, want)
    near = all(mine[name] <= 1.5 * theirs[name] for name in ("kl", "worst_relative_error"))
    results.add("logits", "qwen2-edge", prompt=tokens, output=0, against="transformers fp32", near=near, **mine)
    results.add("logits", prompt=tokens, output=0, against="transformers fp32", **theirs)
    return near


class Clock:
    def __init__(self, device, torch):
        self.wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    def seconds(self, work):
        self.wait()
        start = time.perf_counter()
        result = work()
        self.wait()
        return time.perf_counter() - start, result


def bench(results, model, device, torch):
    clock, head = Clock(device, torch), results.all
    vocab = model.config.vocab_size
    random = torch.Generator().manual_seed(1)

    def prompt(batch, length):
        return torch.randint(vocab, (batch, length), generator=random).to(device)

    def step(ids, cache=None):
        out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values

    def decode(ids, cache, count):
        for _ in range(count):
            ids, cache = step(ids, cache)

    decode(*step(prompt(1, 16)), 2)  # warm
    for batch in head["batches"]:
        ids, cache = step(prompt(batch, head["prompt"]))
        count = head["output"] - 1
        seconds, _ = clock.seconds(lambda ids=ids, cache=cache: decode(ids, cache, count))
        results.add("decode", batch=batch, prompt=head["prompt"], output=head["output"], value=batch * count / seconds, unit="tokens/s")
    seconds, _ = clock.seconds(lambda: step(prompt(1, head["prefill"])))
    results.add("prefill", batch=1, prompt=head["prefill"], output=1, value=head["prefill"] / seconds, unit="tokens/s")
    ids = prompt(1, head["prefix"])
    seconds, _ = clock.seconds(lambda: step(ids))
    results.add("ttft cold", batch=1, prompt=head["prefix"], output=1, value=seconds, unit="s")
    known = step(ids[:, :-16])[1]
    kept = copy.deepcopy(known)
    step(ids[:, -16:], kept)  # warm
    seconds, _ = clock.seconds(lambda: step(ids[:, -16:], known))
    results.add("ttft warm", batch=1, prompt=head["prefix"], output=1, value=seconds, unit="s")


def main():
    path, folder, device = (sys.argv[1:] + ["cuda"])[:3]
    results = Results(path)
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as missing:
        results.add("peer", skipped=str(missing))
        return 0
    if device.startswith("cuda") and not torch.cuda.is_available():
        results.add("peer", skipped="this torch has no CUDA device")
        return 0
    torch.manual_seed(1)
    with torch.inference_mode():
        start = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
        results.add("load", prompt=0, output=0, value=time.perf_counter() - start, unit="s")
        near = compare(results, model, folder, device, torch)
        bench(results, model, device, torch)
    return 0 if near else 1


if __name__ == "__main__":
    sys.exit(main())
