"""A model of any size that llama.cpp really runs: Saffron's tokenizer and template around random Q8_0 weights."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np

SAFFRON = Path(__file__).resolve().parents[1] / "src/casemate/data/saffron/saffron-q8_0.gguf"
Q8_0 = gguf.GGMLQuantizationType.Q8_0


def q8_0(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Return random Q8_0 blocks: 32 weights as one half-precision scale and 32 signed bytes."""
    blocks = rng.integers(0, 256, (rows, columns // 32, 34), dtype=np.uint8)
    blocks[:, :, :2] = np.frombuffer(np.float16(0.0004).tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


def write(path: Path, *, width: int = 1024, layers: int = 24, feed: int = 4096, seed: int = 1) -> int:
    """Write the model and return its size in bytes (the defaults give about 400 MB)."""
    rng = np.random.default_rng(seed)
    source = gguf.GGUFReader(SAFFRON)
    out = gguf.GGUFWriter(path, "llama")
    heads, kv = width // 64, width // 256
    out.add_name("benchmark")
    out.add_context_length(2048)
    out.add_embedding_length(width)
    out.add_block_count(layers)
    out.add_feed_forward_length(feed)
    out.add_head_count(heads)
    out.add_head_count_kv(kv)
    out.add_rope_dimension_count(64)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_file_type(7)
    tokens = source.fields["tokenizer.ggml.tokens"]
    vocabulary = [bytes(tokens.parts[i]) for i in tokens.data]
    merges = source.fields["tokenizer.ggml.merges"]
    types = source.fields["tokenizer.ggml.token_type"]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(vocabulary)
    out.add_token_types([int(types.parts[i][0]) for i in types.data])
    out.add_token_merges([bytes(merges.parts[i]) for i in merges.data])
    out.add_bos_token_id(0)
    out.add_eos_token_id(2)
    out.add_add_bos_token(False)
    template = source.fields["tokenizer.chat_template"]
    out.add_chat_template(bytes(template.parts[template.data[0]]).decode())
    count = len(vocabulary)
    put = lambda name, rows, columns: out.add_tensor(name, q8_0(rng, rows, columns), raw_dtype=Q8_0)  # noqa: E731
    put("token_embd.weight", count, width)
    out.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for n in range(layers):
        out.add_tensor(f"blk.{n}.attn_norm.weight", np.ones(width, np.float32))
        out.add_tensor(f"blk.{n}.ffn_norm.weight", np.ones(width, np.float32))
        put(f"blk.{n}.attn_q.weight", width, width)
        put(f"blk.{n}.attn_k.weight", kv * 64, width)
        put(f"blk.{n}.attn_v.weight", kv * 64, width)
        put(f"blk.{n}.attn_output.weight", width, width)
        put(f"blk.{n}.ffn_gate.weight", feed, width)
        put(f"blk.{n}.ffn_up.weight", feed, width)
        put(f"blk.{n}.ffn_down.weight", width, feed)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path.stat().st_size


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
