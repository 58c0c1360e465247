// Weights as matmul.inc.h and quantised.inc.h read them: row by row as they were stored, then all scales, then all
// offsets.

/** Of one output, without its scales. */
inline std::size_t stored_bytes(const MatrixForm& form) {
  switch (form.format) {
    case Format::f32:
      return form.in * 4;
    case Format::f16:
    case Format::bf16:
      return form.in * 2;
    case Format::int8:
      return form.in;
    case Format::int4:
      return form.in / 2;
  }
  return 0;
}

inline std::size_t groups_of(const MatrixForm& form) { return form.group == 0 ? 0 : form.in / form.group; }

inline std::size_t rows_bytes(const MatrixForm& form) {
  const std::size_t arrays = form.format == Format::int8 ? 1 : form.format == Format::int4 ? 2 : 0;
  return form.out * (stored_bytes(form) + arrays * groups_of(form) * sizeof(float));
}

inline void arrange_rows(const MatrixForm& form, const MatrixRows& rows, std::size_t first, std::size_t count,
                         std::byte* matrix) {
  const std::size_t row = stored_bytes(form), scales = groups_of(form) * sizeof(float);
  std::memcpy(matrix + first * row, rows.weight, count * row);
  matrix += form.out * row;
  if (rows.scales != nullptr) std::memcpy(matrix + first * scales, rows.scales, count * scales);
  matrix += form.out * scales;
  if (rows.offsets != nullptr) std::memcpy(matrix + first * scales, rows.offsets, count * scales);
}
