// Causal attention over paged keys and values, for one KV head and its group of query heads.
//
// Keys lie transposed inside a block, [head_dim][16 tokens], so that lanes are tokens and a score needs no horizontal
// sum; values lie as [16 tokens][head_dim], so that lanes are channels. Per query the order of every sum is fixed by
// absolute positions alone: a score runs over channels 0..head_dim-1; keys are cut into segments of 256 starting at
// multiples of 256; each segment yields its own maximum, sum and weighted values (keys in order); segments are merged
// in order by rescaling to the common maximum (the online softmax of Milakov and Gimelshein, 2018). How many rows share
// a tile, or where a chunk of prefill began, changes no bit.

/** Queries side by side, whose channels one load each brings to all lanes: kQueries * key vectors accumulators. */
inline constexpr std::size_t kQueries = kLanes == 16 ? 8 : kLanes == 8 ? 4 : 2;

/** query: [groups of kQueries][head_dim][kQueries], zero behind the last */
inline void pack_queries(const AttentionTile& t, float* query) {
  const std::size_t queries = t.rows * t.group;
  for (std::size_t i = 0; i < round_up(queries, kQueries); ++i) {
    const float* from = t.q + i / t.group * t.q_stride + i % t.group * t.head_dim;
    float* to = query + i / kQueries * kQueries * t.head_dim + i % kQueries;
    for (std::size_t d = 0; d < t.head_dim; ++d) to[d * kQueries] = i < queries ? from[d] : 0.0f;
  }
}

/** Scores of `queries` against the tokens [first, first + Blocks * 16) of a segment. */
template <std::size_t Blocks>
inline void scores_of_blocks(const AttentionTile& t, std::size_t segment, std::size_t first, const float* query,
                             std::size_t queries, float* score /* [queries][kSegment] */) {
  constexpr std::size_t kVectors = Blocks * kBlockSize / kLanes, kOfBlock = kBlockSize / kLanes;
  const float* block[Blocks];  // [head_dim][16]
  for (std::size_t b = 0; b < Blocks; ++b)
    block[b] = t.keys + t.blocks[(segment + first) / kBlockSize + b] * t.key_block;
  for (std::size_t q = 0; q < queries; q += kQueries) {
    F acc[kQueries][kVectors];
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kQueries; ++i)
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kVectors; ++v) acc[i][v] = set1(0.0f);
    for (std::size_t d = 0; d < t.head_dim; ++d, query += kQueries) {
      F key[kVectors];
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kVectors; ++v)
        key[v] = load(block[v / kOfBlock] + d * kBlockSize + v % kOfBlock * kLanes);
#pragma GCC unroll 8
      for (std::size_t i = 0; i < kQueries; ++i)
#pragma GCC unroll 4
        for (std::size_t v = 0; v < kVectors; ++v) acc[i][v] = fma(set1(query[i]), key[v], acc[i][v]);
    }
    for (std::size_t i = 0; i < std::min(kQueries, queries - q); ++i)
      for (std::size_t v = 0; v < kVectors; ++v)
        store(score + (q + i) * kSegment + first + v * kLanes, acc[i][v] * set1(t.scale));
  }
}

inline void scores_of(const AttentionTile& t, std::size_t segment, std::size_t keys, const float* query,
                      std::size_t queries, float* score /* [queries][kSegment] */) {
  constexpr std::size_t kBlocks = kLanes == 16 ? 2 : 1;  // as many as there are registers for
  std::size_t first = 0;
  for (; first + kBlocks * kBlockSize <= round_up(keys, kBlockSize); first += kBlocks * kBlockSize)
    scores_of_blocks<kBlocks>(t, segment, first, query, queries, score);
  for (; first < keys; first += kBlockSize) scores_of_blocks<1>(t, segment, first, query, queries, score);
}

/** Turns `keys` scores into weights exp(score - maximum), the rest of the last block into zeros. */
inline void weights_of(float* score, std::size_t keys, float& maximum, float& total) {
  const std::size_t end = round_up(keys, kBlockSize);
  for (std::size_t i = keys; i < end; ++i) score[i] = -std::numeric_limits<float>::infinity();
  F top = load(score);
  for (std::size_t i = kLanes; i < end; i += kLanes) top = max(load(score + i), top);
  maximum = largest(top);
  F all = set1(0.0f);
  for (std::size_t i = 0; i < end; i += kLanes) {
    F weight = exp(load(score + i) - set1(maximum));
    store(score + i, weight);
    if (i + kLanes > keys) {
      for (std::size_t j = std::max(i, keys); j < i + kLanes; ++j) score[j] = 0.0f;
      weight = load(score + i);
    }
    all = all + weight;
  }
  total = sum(all);
}

inline constexpr std::size_t kValueVectors = 2;

/** For each of `Queries` rows of weights: sum over keys, in order, of weight * value, channels [d, d + Vectors *
 * kLanes) */
template <std::size_t Queries, std::size_t Vectors>
inline void weighted_channels(const AttentionTile& t, std::size_t segment, std::size_t keys, std::size_t d,
                              const float* weight /* [Queries][kSegment] */, float* out /* [Queries][padded] */) {
  F acc[Queries][Vectors];
#pragma GCC unroll 8
  for (std::size_t q = 0; q < Queries; ++q)
#pragma GCC unroll 2
    for (std::size_t v = 0; v < Vectors; ++v) acc[q][v] = set1(0.0f);
  for (std::size_t first = 0; first < keys; first += kBlockSize) {
    const float* value = t.values + t.blocks[(segment + first) / kBlockSize] * t.value_block + d;  // [16][padded]
    const std::size_t count = std::min(kBlockSize, keys - first);
    for (std::size_t j = 0; j < count; ++j, value += t.padded) {
      F here[Vectors];
#pragma GCC unroll 2
      for (std::size_t v = 0; v < Vectors; ++v) here[v] = load(value + v * kLanes);
#pragma GCC unroll 8
      for (std::size_t q = 0; q < Queries; ++q) {
        const F share = set1(weight[q * kSegment + first + j]);
#pragma GCC unroll 2
        for (std::size_t v = 0; v < Vectors; ++v) acc[q][v] = fma(share, here[v], acc[q][v]);
      }
    }
  }
  for (std::size_t q = 0; q < Queries; ++q)
    for (std::size_t v = 0; v < Vectors; ++v) store(out + q * t.padded + d + v * kLanes, acc[q][v]);
}

/** sum over keys, in order, of weight * value, for queries that see the same keys: [queries][padded] */
template <std::size_t Queries = kQueries>
inline void weighted_values(const AttentionTile& t, std::size_t segment, std::size_t keys, const float* weight,
                            std::size_t queries, float* out) {
  for (; queries >= Queries; queries -= Queries, weight += Queries * kSegment, out += Queries * t.padded) {
    std::size_t d = 0;
    for (; d + kValueVectors * kLanes <= t.padded; d += kValueVectors * kLanes)
      weighted_channels<Queries, kValueVectors>(t, segment, keys, d, weight, out);
    if (d < t.padded) weighted_channels<Queries, 1>(t, segment, keys, d, weight, out);
  }
  if constexpr (Queries > 1)
    if (queries > 0) weighted_values<Queries - 1>(t, segment, keys, weight, queries, out);
}

/** Keys of a segment that a row of the tile sees. */
inline std::size_t keys_seen(const AttentionTile& t, std::size_t segment, std::size_t row) {
  const std::size_t end = t.position + row + 1;
  return end <= segment ? 0 : std::min(kSegment, end - segment);
}

/** The two products of attention, in fp32. */
class PlainProducts {
 public:
  static constexpr std::size_t kRows = 4;  // of a tile at most
  static constexpr std::size_t kTogether = 1;

  explicit PlainProducts(const AttentionTile& t) : t_(t) {
    thread_local AlignedBuffer buffer;
    query_ = buffer.floats(round_up(t.rows * t.group, kQueries) * t.head_dim);
    pack_queries(t, query_);
  }

  /** score [queries][kSegment]: every query with the first `keys` keys of a segment. */
  void scores(std::size_t segment, std::size_t keys, float* score) const {
    scores_of(t_, segment, keys, query_, t_.rows * t_.group, score);
  }

  /** out [queries][padded]: the values that each row sees, by its weights [queries][kSegment]. */
  void values(std::size_t segment, std::size_t /*keys*/, float* weight, float* out) const {
    for (std::size_t r = 0; r < t_.rows; ++r)
      if (const std::size_t seen = keys_seen(t_, segment, r); seen > 0)
        weighted_values(t_, segment, seen, weight + r * t_.group * kSegment, t_.group, out + r * t_.group * t_.padded);
  }

 private:
  const AttentionTile& t_;
  float* query_;
};

template <class Products>
inline void attention(const AttentionTile& t) {
  const std::size_t queries = t.rows * t.group, room = round_up(queries, Products::kTogether);
  thread_local AlignedBuffer buffer;
  float* score = buffer.floats(room * (kSegment + 2 * t.padded + 4));
  float* part = score + room * kSegment;    // [queries][padded], this segment's values
  float* running = part + room * t.padded;  // [queries][padded], merged so far
  float* maximum = running + room * t.padded;
  float *total = maximum + room, *top = total + room, *here = top + room;  // [queries]
  const Products products(t);

  const std::size_t longest = t.position + t.rows;
  for (std::size_t segment = 0; segment < longest; segment += kSegment) {
    const std::size_t keys = std::min(kSegment, longest - segment);
    products.scores(segment, keys, score);
    for (std::size_t i = 0; i < queries; ++i)
      if (const std::size_t seen = keys_seen(t, segment, i / t.group); seen > 0)
        weights_of(score + i * kSegment, seen, top[i], here[i]);
    if (segment == 0) {
      products.values(segment, keys, score, running);
      std::copy_n(top, queries, maximum);
      std::copy_n(here, queries, total);
      continue;
    }
    products.values(segment, keys, score, part);
    for (std::size_t i = 0; i < queries; ++i) {
      if (keys_seen(t, segment, i / t.group) == 0) continue;
      const float merged = std::max(maximum[i], top[i]);
      const float keep = std::exp(maximum[i] - merged), add = std::exp(top[i] - merged);
      maximum[i] = merged;
      total[i] = total[i] * keep + here[i] * add;
      for (std::size_t d = 0; d < t.padded; d += kLanes) {
        float* sum_so_far = running + i * t.padded + d;
        store(sum_so_far, fma(load(part + i * t.padded + d), set1(add), load(sum_so_far) * set1(keep)));
      }
    }
  }

  for (std::size_t i = 0; i < queries; ++i) {
    float* out = t.out + i / t.group * t.q_stride + i % t.group * t.head_dim;
    const float inverse = 1.0f / total[i];
    for (std::size_t d = 0; d < t.head_dim; ++d) out[d] = running[i * t.padded + d] * inverse;
  }
}
