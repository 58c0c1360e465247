"""Makes the engine's oracle with Hugging Face transformers: what an fp32 computation on bf16 weights must give.

    python make_oracle.py                 # the random fixtures and the shipped model
    python make_oracle.py --only tiny     # the shipped model alone, after its weights changed

Needs torch, transformers, safetensors, numpy (versions in gpu-backend/models/requirements.txt). Deterministic by seed.

NAME/            config.json, generation_config.json, model.safetensors: a random-weight checkpoint (absent for `tiny`,
                 whose folder is gpu-backend/models/tiny)
NAME.json        {"format": 1, "model": folder from the repository root, "vocab_rows": logits a row,
                  "tokens": rows below this are real tokens, the rest is padding,
                  "prompts": [{"name", "token_ids", "positions": the positions whose logits are kept,
                               "offset": where they start in NAME.logits.bin, counted in floats,
                               "greedy": the next 64 tokens by argmax over the real tokens, <eos> ignored,
                               "margin": the least distance between the best two logits over those 64 steps}]}
NAME.logits.bin  float32, little endian, [positions][vocab_rows], prompts one after another; padding rows included

Every fixture's margin is far above fp32 noise (a seed is rejected otherwise), so greedy tokens must agree exactly.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
LENGTHS = (1, 15, 16, 17, 70, 300)
ALL_POSITIONS = 16  # the prompt of this length keeps the logits of every position
STEPS = 64
MARGIN = 0.005
# Two head sizes and two group sizes; hidden = heads * head_dim as in every Qwen2.
FIXTURES = {
    "dense-gqa-tied": dict(tokens=437, vocab_size=448, hidden_size=256, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, intermediate_size=512, tie_word_embeddings=True),
    "dense-gqa-untied": dict(tokens=192, vocab_size=192, hidden_size=384, num_attention_heads=3, num_key_value_heads=1, num_hidden_layers=2, intermediate_size=192, tie_word_embeddings=False),
    # The structure of 57B-A14B; a prompt of 300 tokens under an original length of 64; both four-bit formats.
    "moe": dict(tokens=192, vocab_size=192, hidden_size=128, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=2, intermediate_size=128, tie_word_embeddings=False, num_experts=64, num_experts_per_tok=8, moe_intermediate_size=16, shared_expert_intermediate_size=96, norm_topk_prob=False, decoder_sparse_step=1),
    "yarn": dict(tokens=192, vocab_size=192, hidden_size=256, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=2, intermediate_size=192, tie_word_embeddings=True, yarn=dict(factor=8.0, original_max_position_embeddings=64)),
    "gptq": dict(tokens=192, vocab_size=192, hidden_size=256, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=2, intermediate_size=384, tie_word_embeddings=False, quantised="gptq"),
    "awq": dict(tokens=192, vocab_size=192, hidden_size=256, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=2, intermediate_size=384, tie_word_embeddings=False, quantised="awq"),
}


def random_model(shape, seed):
    """Weights scaled so that attention is peaked, every bias and norm matters and logits spread over several units."""
    torch.manual_seed(seed)
    rope = dict(rope_theta=1e6, rope_type="default")
    if yarn := shape.pop("yarn", None):
        rope = dict(rope_theta=1e6, rope_type="yarn", **yarn)
    context = yarn["original_max_position_embeddings"] if yarn else 8192
    common = dict(**shape, max_position_embeddings=context, rope_parameters=rope, rms_norm_eps=1e-6, use_sliding_window=False, bos_token_id=0, eos_token_id=1)
    moe = "num_experts" in shape
    model = (Qwen2MoeForCausalLM(Qwen2MoeConfig(**common)) if moe else Qwen2ForCausalLM(Qwen2Config(**common))).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(1 + 0.3 * torch.randn_like(p))
            elif name.endswith("bias"):
                p.normal_(std=0.5)
            elif "embed" in name or "lm_head" in name:
                p.normal_(std=0.15)
            elif "experts" in name and "shared" not in name:
                p.normal_(std=4.0 * p.shape[2] ** -0.5)
            else:
                gain = 2.0 if "q_proj" in name or "k_proj" in name else 3.0 if "o_proj" in name or "down_proj" in name else 1.0
                p.normal_(std=gain * p.shape[1] ** -0.5)
            p.copy_(p.to(torch.bfloat16).float())
    return model


GROUP = 128


def pack(values, order):
    """Eight columns to a 32-bit word: nibble i of a word holds column order[i]. values: [n, m], result [n, m / 8]."""
    words = np.zeros((values.shape[0], values.shape[1] // 8), dtype=np.uint32)
    for i, column in enumerate(order):
        words |= values[:, column::8].astype(np.uint32) << np.uint32(4 * i)
    return torch.from_numpy(words.view(np.int32).copy())


@torch.no_grad()
def quantise(model, method):
    """Rounds every matrix of the layers to four bits *in the model*, and returns the packed tensors that say the same.

    GPTQ as AutoGPTQ's qlinear_cuda_old.py packs it, AWQ as AutoAWQ's gemm.py does (QWEN2.md has both layouts)."""
    packed = {}
    for name, p in model.named_parameters():
        if not name.endswith("_proj.weight"):
            continue
        w = p.T.reshape(-1, GROUP, p.shape[0])  # [groups, 128, out]
        low, high = w.amin(1), w.amax(1)
        scale = ((high - low) / 15).half()  # [groups, out]
        zero = torch.clamp(torch.round(-low / scale.float()), 1, 15)
        q = torch.clamp(torch.round(w / scale.float()[:, None] + zero[:, None]), 0, 15)
        p.copy_(((q - zero[:, None]) * scale.float()[:, None]).reshape(-1, p.shape[0]).T)
        q, zero = q.reshape(-1, p.shape[0]).numpy().astype(np.uint32), zero.numpy().astype(np.uint32)
        at = name[: -len("weight")]
        if method == "gptq":
            packed[at + "qweight"] = pack(q.T, range(8)).T.contiguous()
            packed[at + "qzeros"] = pack(zero - 1, range(8))
            packed[at + "g_idx"] = torch.arange(q.shape[0], dtype=torch.int32) // GROUP
        else:
            packed[at + "qweight"] = pack(q, (0, 2, 4, 6, 1, 3, 5, 7))
            packed[at + "qzeros"] = pack(zero, (0, 2, 4, 6, 1, 3, 5, 7))
        packed[at + "scales"] = scale.contiguous()
    return packed


def tensors_of(model, packed):
    """The state as published checkpoints name it: an expert's matrices by themselves, no copy of a tied embedding."""
    tensors = {}
    for name, value in model.state_dict().items():
        value = value.to(torch.float16 if packed else torch.bfloat16)
        if name == "lm_head.weight" and model.config.tie_word_embeddings or name[: -len("weight")] + "qweight" in packed:
            continue
        if ".experts." not in name:
            tensors[name] = value
            continue
        at, part = name.rsplit(".", 1)
        for e, matrix in enumerate(value):
            for label, half in zip(("gate_proj", "up_proj"), matrix.chunk(2)) if part == "gate_up_proj" else ((part, matrix),):
                tensors[f"{at}.{e}.{label}.weight"] = half
    return {name: value.contiguous() for name, value in (tensors | packed).items()}


def save(model, folder, packed={}, method=None):
    folder.mkdir(exist_ok=True)
    c = model.config
    moe = hasattr(c, "num_experts")
    rope = c.rope_parameters
    config = dict(
        architectures=["Qwen2MoeForCausalLM" if moe else "Qwen2ForCausalLM"], attention_dropout=0.0, bos_token_id=0, eos_token_id=1, hidden_act="silu", hidden_size=c.hidden_size,
        initializer_range=0.02, intermediate_size=c.intermediate_size, max_position_embeddings=c.max_position_embeddings, max_window_layers=c.num_hidden_layers,
        model_type="qwen2_moe" if moe else "qwen2", num_attention_heads=c.num_attention_heads, num_hidden_layers=c.num_hidden_layers,
        num_key_value_heads=c.num_key_value_heads, rms_norm_eps=1e-6, rope_theta=1e6, sliding_window=8192,
        tie_word_embeddings=c.tie_word_embeddings, torch_dtype="float16" if packed else "bfloat16", use_cache=True, use_sliding_window=False, vocab_size=c.vocab_size)
    if moe:
        config |= {k: getattr(c, k) for k in ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size", "norm_topk_prob", "decoder_sparse_step")}
    if rope["rope_type"] == "yarn":
        config["rope_scaling"] = dict(type="yarn", factor=rope["factor"], original_max_position_embeddings=rope["original_max_position_embeddings"])
    if method == "gptq":
        config["quantization_config"] = dict(quant_method="gptq", bits=4, group_size=GROUP, desc_act=False, sym=False, true_sequential=True)
    if method == "awq":
        config["quantization_config"] = dict(quant_method="awq", bits=4, group_size=GROUP, version="gemm", zero_point=True, modules_to_not_convert=None)
    generation = dict(bos_token_id=0, pad_token_id=0, do_sample=True, eos_token_id=[1, 0], repetition_penalty=1.05, temperature=0.7, top_p=0.8, top_k=20)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_file(tensors_of(model, packed), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


@torch.no_grad()
def continue_greedily(model, ids, tokens):
    """(logits of the prompt [length, rows], greedy tokens, least margin)."""
    out = model(torch.tensor([ids]), use_cache=True)
    prompt, cache, row = out.logits[0], out.past_key_values, out.logits[0, -1]
    greedy, margin = [], float("inf")
    while True:
        best = row[:tokens].topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        greedy.append(int(best.indices[0]))
        if len(greedy) == STEPS:
            return prompt.numpy(), greedy, margin
        out = model(torch.tensor([[greedy[-1]]]), past_key_values=cache, use_cache=True)
        cache, row = out.past_key_values, out.logits[0, -1]


def oracle(name, model, folder, tokens, prompts, distinct):
    """Writes NAME.json and NAME.logits.bin. `prompts` yields (name, candidates): the first is kept that has a clear
    margin and does not stick to fewer than `distinct` tokens (a continuation stuck on one token proves little)."""
    kept, rows, offset = [], [], 0
    for label, candidates in prompts:
        for ids in candidates:
            logits, greedy, margin = continue_greedily(model, ids, tokens)
            if margin > MARGIN and len(set(greedy)) >= distinct:
                break
        else:
            sys.exit(f"{name}/{label}: no candidate is clear enough")
        positions = list(range(len(ids))) if label == f"length {ALL_POSITIONS}" else [len(ids) - 1]
        rows.append(logits[positions].astype("<f4"))
        kept.append(dict(name=label, token_ids=ids, positions=positions, offset=offset, greedy=greedy, margin=round(margin, 4)))
        offset += rows[-1].size
        print(f"{name}/{label}: margin {margin:.4f}, {len(set(greedy))} distinct tokens, logits std {rows[-1].std():.2f}")
    lines = ",\n".join("  " + json.dumps(p) for p in kept)
    head = json.dumps(dict(format=1, model=str(folder.relative_to(ROOT)), vocab_rows=model.config.vocab_size, tokens=tokens))[:-1]
    (HERE / f"{name}.json").write_text(f'{head}, "prompts": [\n{lines}\n]}}\n')
    (HERE / f"{name}.logits.bin").write_bytes(b"".join(r.tobytes() for r in rows))


def random_prompts(tokens, seed):
    rng = random.Random(seed)
    for length in LENGTHS:
        yield f"length {length}", ([rng.randrange(tokens) for _ in range(length)] for _ in range(60))


def chat_prompts(tokenizer):
    def chat(text):
        message = [{"role": "user", "content": text}]
        return tokenizer.encode(tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False))

    lines = [" ".join(f"Line {i}: the {w} number {i * 7 % 101} is kept in room {i * 13 % 89}." for i in range(1, 80)) for w in ("box", "lamp", "ship", "clock", "stone", "river", "apple", "piano")]
    for length in LENGTHS:
        yield f"length {length}", (ids[s : s + length] for s in range(0, 200, 5) for ids in map(chat, lines))
    yield "sum", [chat("What is 17 + 25?")]
    for word in ("falcon", "BANANA"):
        body = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. " * 24
        text = lambda question: f"{body}The code word is {word}. {body}\n\n{question}"
        yield f"recall {word}", [chat(text(q)) for q in ("What is the code word?", "Tell me the code word.", "Repeat the code word, please.", "Say the code word.")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=(*FIXTURES, "tiny"))
    only = parser.parse_args().only
    for i, (name, shape) in enumerate(FIXTURES.items()):
        if only in (None, name):
            shape = dict(shape)
            tokens, method = shape.pop("tokens"), shape.pop("quantised", None)
            model = random_model(shape, seed=i)
            if method:
                for p in (*model.model.embed_tokens.parameters(), *model.lm_head.parameters()):
                    p.data = p.data.half().float()
                save(model, HERE / name, quantise(model, method), method)
            else:
                save(model, HERE / name)
                # Read back, so that the oracle is of the file and not of what it was made from.
                model = AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float32).eval()
            oracle(name, model, HERE / name, tokens, random_prompts(tokens, seed=i), distinct=10)
    if only in (None, "tiny"):
        folder = ROOT / "gpu-backend/models/tiny"
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        oracle("tiny", model, folder, len(tokenizer), chat_prompts(tokenizer), distinct=3)


if __name__ == "__main__":
    main()
