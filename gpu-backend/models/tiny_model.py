"""Qwen2's arithmetic in plain PyTorch, parameter names as in transformers, and the checkpoint folder it is saved to."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Shape:
    vocab_rows: int = 2304  # 2,259 tokens, padded to a multiple of 64 as Qwen2 pads
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    ffn: int = 512
    theta: float = 1e6
    context: int = 8192
    eps: float = 1e-6


class Norm(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(shape.hidden)), shape.eps

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def short_attention(q, k, v, is_causal):
    """Two plain products: on a CPU twice as fast as the fused kernel when rows are short."""
    length = q.shape[-2]
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(later, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


class Attention(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.q_proj = nn.Linear(s.hidden, s.heads * s.head_dim)
        self.k_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim)
        self.v_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim)
        self.o_proj = nn.Linear(s.heads * s.head_dim, s.hidden, bias=False)

    def forward(self, x, cos, sin):  # x [rows, length, hidden]; cos, sin [length, head_dim]
        rows, length, _ = x.shape
        split = lambda y: y.view(rows, length, -1, self.s.head_dim).transpose(1, 2)
        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        rotate = lambda y: (y * cos + torch.cat((-y[..., y.shape[-1] // 2 :], y[..., : y.shape[-1] // 2]), -1) * sin).to(v.dtype)
        repeat = self.s.heads // self.s.kv_heads
        k, v = rotate(k).repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        y = (short_attention if length <= 256 else F.scaled_dot_product_attention)(rotate(q), k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(rows, length, -1))


class Mlp(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(s.hidden, s.ffn, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(s.ffn, s.hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(s), Norm(s)
        self.self_attn, self.mlp = Attention(s), Mlp(s)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab_rows, s.hidden)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = Norm(s)
        angle = torch.outer(torch.arange(s.context).float(), s.theta ** -(torch.arange(0, s.head_dim, 2).float() / s.head_dim))
        self.register_buffer("cos", torch.cat((angle, angle), -1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat((angle, angle), -1).sin(), persistent=False)

    def forward(self, ids):
        x = self.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class TinyQwen2(nn.Module):
    """forward gives the hidden states [rows, length, hidden]; `logits` is apart so that only the learned places pay for it."""

    def __init__(self, shape=Shape()):
        super().__init__()
        self.shape, self.model = shape, Body(shape)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02 if "embed" in name else p.shape[1] ** -0.5 * (0.3 if "o_proj" in name or "down" in name else 0.8))
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids):
        return self.model(ids)

    def logits(self, hidden):
        return F.linear(hidden, self.model.embed_tokens.weight)


def load(folder: Path, shape=Shape()):
    """The exported bf16 weights, computed with in fp32."""
    from safetensors.torch import load_file

    model = TinyQwen2(shape)
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    return model.eval()


def export(model, folder: Path, tokenizer):
    """Writes the weights (atomically: someone may be reading) and the two JSON files beside them."""
    from safetensors.torch import save_file

    s = model.shape
    endoftext, im_end = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")
    config = dict(
        architectures=["Qwen2ForCausalLM"], attention_dropout=0.0, bos_token_id=endoftext, eos_token_id=im_end, hidden_act="silu",
        hidden_size=s.hidden, initializer_range=0.02, intermediate_size=s.ffn, max_position_embeddings=s.context,
        max_window_layers=s.layers, model_type="qwen2", num_attention_heads=s.heads, num_hidden_layers=s.layers,
        num_key_value_heads=s.kv_heads, rms_norm_eps=s.eps, rope_theta=s.theta, sliding_window=s.context, tie_word_embeddings=True,
        torch_dtype="bfloat16", use_cache=True, use_sliding_window=False, vocab_size=s.vocab_rows)
    # No repetition penalty: sums, lists and reversed words repeat what stands in the prompt.
    generation = dict(
        bos_token_id=endoftext, pad_token_id=endoftext, do_sample=True, eos_token_id=[im_end, endoftext],
        repetition_penalty=1.0, temperature=0.7, top_p=0.8, top_k=20)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    part = folder / "model.safetensors.part"
    save_file({k: v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}, part, metadata={"format": "pt"})
    part.chmod(0o644)
    part.rename(folder / "model.safetensors")
