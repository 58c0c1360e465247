// Matmul on AMX tiles, for weights of bf16, eight and four bits; the other formats take matmul.inc.h's kernels.
//
// Weights are the left operand, 16 outputs by 64 bytes of inputs (amx_weights.inc.h); x, cut into parts
// (amx_pack.inc.h), is the right one, so a tile of sums is [16 outputs][up to 16 rows of x], and decode, which is bound
// by reading weights, runs the same instructions as prefill. An element of a tile is its own sum, in an order that the
// instruction fixes, over inputs in ascending order. So a row's bits depend on nothing but the row, as at every level.

inline void amx_matmul(const Matmul& job, const Projection& part, std::size_t begin, std::size_t end) {
  switch (part.format) {
    case Format::f32:
    case Format::f16:
      return matmul(job, part, begin, end);
    case Format::bf16:
      if (job.rows <= kPackRows) return FewRows(job, part).multiply(begin, end);
      return ManyRows(job, part, nullptr).multiply(begin, end);
    case Format::int8:
      return BytesProduct<Format::int8>(job, part).multiply(begin, end);
    case Format::int4:
      return BytesProduct<Format::int4>(job, part).multiply(begin, end);
  }
}

/** Where the two matrices pass side by side. */
inline bool amx_gates(const Matmul& job, const Projection& gate, const Projection& up) {
  return job.rows > kPackRows && gate.format == Format::bf16 && up.format == Format::bf16 && gate.out == up.out &&
         gate.out % 32 == 0 && gate.bias == nullptr && up.bias == nullptr;
}
inline void amx_gated(const Matmul& job, const Projection& gate, const Projection& up, std::size_t begin,
                      std::size_t end) {
  ManyRows(job, gate, &up).multiply(begin, end);
}
