// Weights are the unsigned side of the products, so that what counting them from 0 adds is one number for each block
// of a row, whatever the column.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")
#include "blocks.h"

#include "block_pairs.h"
#include "cpu.h"
#include "expand.h"
#include "simd.h"

namespace piston {
namespace {

constexpr int kMaxRows = 8;
constexpr float kLargest = 127.0f;

enum Form { kBytes, kNibbles, kSparseBytes, kSparseHalves };

// The weights of a tile.
struct TileWeights {
  const uint8_t* codes;
  Form form;
};

// Those of a part, or of sparse ones a copy as bytes in `room`, unless they are read `as_stored`.
TileWeights weights_of(const BlockWeights& part, int64_t tile, int64_t depth, bool as_stored, Scratch& room) {
  const uint8_t* codes = part.tile(tile, depth);
  if (!part.is_sparse()) return {codes, part.bits == 8 ? kBytes : kNibbles};
  if (as_stored) return {codes, part.bits == 8 ? kSparseBytes : kSparseHalves};
  uint8_t* bytes = room.at_least<uint8_t>(static_cast<size_t>(depth * kLanes));
  expand_tile(codes, depth * part.bits / 32, part.bits, static_cast<uint8_t>(part.zero()), bytes);
  return {bytes, kBytes};
}

// Bytes of eight inputs by 16 columns.
constexpr int64_t bytes_of_eight(Form form) {
  switch (form) {
    case kSparseBytes: return 2 * kSparseRow;
    case kSparseHalves: return kSparseNibbles;
    case kBytes: return 2 * kDenseRow;
    default: return kDenseRow;
  }
}

// Weights of eight inputs by 16 columns: of the first four, and of the next.
template <Form Stored>
void load_eight(const uint8_t* weights, __m512i (&eight)[2]) {
  if constexpr (Stored == kSparseBytes) {
    const __m512i zeros = _mm512_set1_epi8(static_cast<char>(128));
    eight[0] = expand_row(zeros, weights);
    eight[1] = expand_row(zeros, weights + kSparseRow);
  } else if constexpr (Stored == kSparseHalves) {
    expand_nibbles(_mm512_set1_epi8(8), weights, eight);
  } else if constexpr (Stored == kBytes) {
    eight[0] = _mm512_loadu_si512(weights);
    eight[1] = _mm512_loadu_si512(weights + kDenseRow);
  } else {
    const __m512i both = _mm512_loadu_si512(weights), low = _mm512_set1_epi8(0x0F);
    eight[0] = _mm512_and_si512(both, low);
    eight[1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
  }
}

template <int Rows, Form Stored>
void totals_of(const BlockInput& input, const BlockWeights& part, const uint8_t* weights, int64_t row, int64_t tile, __m512 (&totals)[Rows]) {
  // Two chains of sums where there are few rows: one alone would wait for its own additions.
  constexpr int kChains = Rows <= 2 ? 2 : 1;
  const int8_t* codes = input.codes + row * input.depth;
  for (auto& total : totals) total = _mm512_setzero_ps();
  for (int64_t b = 0; b < input.blocks; ++b) {
    __m512i sums[Rows][kChains];
    for (int r = 0; r < Rows; ++r) {
      sums[r][kChains - 1] = _mm512_setzero_si512();
      sums[r][0] = _mm512_set1_epi32(-part.zero() * input.sums[(row + r) * input.blocks + b]);
    }
    const int64_t first = b * input.block, rest = input.depth - first;
    for (int64_t k = first; k < first + (rest < input.block ? rest : input.block); k += 8) {
      __m512i eight[2];
      load_eight<Stored>(weights, eight);
      weights += bytes_of_eight(Stored);
      for (int half = 0; half < 2; ++half) {
        for (int r = 0; r < Rows; ++r) {
          int32_t word;
          __builtin_memcpy(&word, codes + r * input.depth + k + 4 * half, sizeof word);
          __m512i& sum = sums[r][half % kChains];
          sum = _mm512_dpbusd_epi32(sum, eight[half], _mm512_set1_epi32(word));
        }
      }
    }
    const __m512 scale = _mm512_loadu_ps(part.scale(tile, b));
    for (int r = 0; r < Rows; ++r) {
      const __m512i sum = kChains == 1 ? sums[r][0] : _mm512_add_epi32(sums[r][0], sums[r][kChains - 1]);
      totals[r] = added(totals[r], sum, scale, input.scales[(row + r) * input.blocks + b]);
    }
  }
}

template <int Rows>
void totals_of(const BlockInput& input, const BlockWeights& part, const TileWeights& weights, int64_t row, int64_t tile, __m512 (&totals)[Rows]) {
  switch (weights.form) {
    case kBytes: return totals_of<Rows, kBytes>(input, part, weights.codes, row, tile, totals);
    case kNibbles: return totals_of<Rows, kNibbles>(input, part, weights.codes, row, tile, totals);
    case kSparseBytes: return totals_of<Rows, kSparseBytes>(input, part, weights.codes, row, tile, totals);
    case kSparseHalves: return totals_of<Rows, kSparseHalves>(input, part, weights.codes, row, tile, totals);
  }
}

// A pair and the weights of its tiles.
struct LoadedPair : BlockPair {
  TileWeights left_weights, right_weights;
};

template <int Rows>
void pair_rows(const BlockProduct& product, const LoadedPair& pair, int64_t row) {
  __m512 left[Rows], right[Rows];
  totals_of<Rows>(product.input, *pair.left, pair.left_weights, row, pair.left_tile, left);
  if (pair.right != nullptr) {
    totals_of<Rows>(product.input, *pair.right, pair.right_weights, row, pair.right_tile, right);
  } else {
    for (auto& total : right) total = _mm512_setzero_ps();
  }
  for (int r = 0; r < Rows; ++r) store_pair(product, pair, row + r, left[r], right[r]);
}

void rows_of(const BlockProduct& product, const LoadedPair& pair, int64_t row, int64_t count) {
  switch (count) {
    case 1: return pair_rows<1>(product, pair, row);
    case 2: return pair_rows<2>(product, pair, row);
    case 3: return pair_rows<3>(product, pair, row);
    case 4: return pair_rows<4>(product, pair, row);
    case 5: return pair_rows<5>(product, pair, row);
    case 6: return pair_rows<6>(product, pair, row);
    case 7: return pair_rows<7>(product, pair, row);
    default: return pair_rows<kMaxRows>(product, pair, row);
  }
}

// Inputs `first` .. first + count of a row: where they lie, or in `room` if some are copies.
const float* inputs_of(const BlockInput& input, int64_t row, int64_t first, int64_t count, float* room) {
  const float* values = input.values + row * input.given;
  if (first + count <= input.given) return values + first;
  for (int64_t i = 0; i < count; ++i)
    room[i] = first + i < input.given ? values[first + i] : values[input.source[first + i - input.given]];
  return room;
}

}  // namespace

void round_blocks(const BlockInput& input, int64_t begin_row, int64_t end_row) {
  alignas(64) float room[kLargestBlock];
  for (int64_t index = begin_row * input.blocks; index < end_row * input.blocks; ++index) {
    const int64_t row = index / input.blocks, first = index % input.blocks * input.block;
    const int64_t rest = input.depth - first, block = rest < input.block ? rest : input.block;
    const float* from = inputs_of(input, row, first, block, room);
    int8_t* to = input.codes + row * input.depth + first;
    __m512 largest = _mm512_setzero_ps();
    for (int64_t i = 0; i < block; i += kLanes) largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_loadu_ps(from + i)));
    const float most = _mm512_reduce_max_ps(largest);
    const __m512 inverse = _mm512_set1_ps(most > 0 ? kLargest / most : 0.0f);
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < block; i += kLanes) {
      const __m512i codes = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(from + i), inverse));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm512_cvtsepi32_epi8(codes));
      sum = _mm512_add_epi32(sum, codes);
    }
    input.scales[index] = most / kLargest;
    input.sums[index] = _mm512_reduce_add_epi32(sum);
  }
}

void multiply_blocks_vnni(const BlockProduct& product, int64_t part, int64_t begin_pair, int64_t end_pair) {
  static thread_local Scratch left_room, right_room;
  const int64_t depth = product.input.depth;
  // Sparse weights that several passes read are expanded once.
  const bool as_stored = product.input.rows <= kMaxRows && level() >= kVbmi2;
  for (int64_t index = begin_pair; index < end_pair; ++index) {
    LoadedPair pair{pair_of(product, part, index), {}, {}};
    pair.left_weights = weights_of(*pair.left, pair.left_tile, depth, as_stored, left_room);
    if (pair.right != nullptr) pair.right_weights = weights_of(*pair.right, pair.right_tile, depth, as_stored, right_room);
    for (int64_t row = 0; row < product.input.rows; row += kMaxRows) {
      const int64_t left = product.input.rows - row;
      rows_of(product, pair, row, left < kMaxRows ? left : kMaxRows);
    }
  }
}

void read_row(const BlockTable& table, int64_t row, float* out) {
  const int64_t tile = row / kLanes, column = row % kLanes;
  const uint8_t* codes = table.weights.tile(tile, table.depth) + column * 4;
  const __m128i zero = _mm_set1_epi32(table.weights.zero());
  for (int64_t b = 0; b < table.blocks; ++b) {
    const int64_t first = b * table.block, rest = table.depth - first;
    const __m128 scale = _mm_set1_ps(table.weights.scale(tile, b)[column]);
    for (int64_t k = first; k < first + (rest < table.block ? rest : table.block); k += 4) {
      const __m128i word = _mm_cvtepu8_epi32(_mm_loadu_si32(codes + k * kLanes));
      _mm_storeu_ps(out + k, _mm_mul_ps(_mm_cvtepi32_ps(_mm_sub_epi32(word, zero)), scale));
    }
  }
}

}  // namespace piston
