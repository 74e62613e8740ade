// Weights are the unsigned side of the products, so that what counting them from 0 adds is one number for each block
// of a row, whatever the column.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")
#include "blocks.h"

#include "block_pairs.h"
#include "simd.h"
#include "sparse_rows.h"

namespace piston {
namespace {

constexpr int kMaxRows = 8, kJoinedRows = 6;  // as many as registers hold sums and totals of
constexpr int kAlone = 4;  // up to so many rows wait for memory, which is read faster from one place than from two
constexpr float kLargest = 127.0f;

// A tile of a part.
struct Side {
  const BlockWeights* part;
  int64_t tile;
};

// Weights of eight inputs by 16 columns: of the first four, and of the next.
template <int Bits>
void load_eight(const uint8_t* weights, int64_t k, __m512i (&eight)[2]) {
  if constexpr (Bits == 8) {
    eight[0] = _mm512_loadu_si512(weights + k * kLanes);
    eight[1] = _mm512_loadu_si512(weights + (k + 4) * kLanes);
  } else {
    const __m512i both = _mm512_loadu_si512(weights + k * kLanes / 2), low = _mm512_set1_epi8(0x0F);
    eight[0] = _mm512_and_si512(both, low);
    eight[1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
  }
}

// One tile, or two of the same width side by side: each activation is then read once for both.
template <int Rows, int Bits, int Tiles>
void dense_totals(const BlockInput& input, const Side (&sides)[Tiles], int64_t row, __m512 (*totals)[Rows]) {
  // Two chains of sums where there are few rows: one alone would wait for its own additions.
  constexpr int kChains = Rows <= 2 ? 2 : 1, kZeroBits = Bits == 8 ? 7 : 3;
  const uint8_t* weights[Tiles];
  for (int side = 0; side < Tiles; ++side) {
    weights[side] = sides[side].part->tile(sides[side].tile, input.depth);
    for (auto& total : totals[side]) total = _mm512_setzero_ps();
  }
  const int8_t* codes = input.codes + row * input.depth;
  for (int64_t b = 0; b < input.blocks; ++b) {
    __m512i sums[Tiles][Rows][kChains];
    for (int r = 0; r < Rows; ++r) {
      const __m512i counted = _mm512_slli_epi32(_mm512_set1_epi32(input.minus_sums[(row + r) * input.blocks + b]), kZeroBits);
      for (int side = 0; side < Tiles; ++side) {
        sums[side][r][kChains - 1] = _mm512_setzero_si512();
        sums[side][r][0] = counted;
      }
    }
    const int64_t first = b * input.block, rest = input.depth - first;
    for (int64_t k = first; k < first + (rest < input.block ? rest : input.block); k += 8) {
      __m512i eight[Tiles][2];
      for (int side = 0; side < Tiles; ++side) load_eight<Bits>(weights[side], k, eight[side]);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
          int32_t word;
          __builtin_memcpy(&word, codes + r * input.depth + k + 4 * half, sizeof word);
          const __m512i four = _mm512_set1_epi32(word);
          for (int side = 0; side < Tiles; ++side) {
            __m512i& sum = sums[side][r][half % kChains];
            sum = add_dots(sum, eight[side][half], four);
          }
        }
      }
    }
    for (int side = 0; side < Tiles; ++side) {
      const __m512 scale = _mm512_loadu_ps(sides[side].part->scale(sides[side].tile, b));
      for (int r = 0; r < Rows; ++r) {
        const auto& chains = sums[side][r];
        const __m512i sum = kChains == 1 ? chains[0] : _mm512_add_epi32(chains[0], chains[kChains - 1]);
        totals[side][r] = added(totals[side][r], sum, scale, input.scales[(row + r) * input.blocks + b]);
      }
    }
  }
}

// The same of sparse weights. They are the signed side here, since what is selected of the activations differs by column:
// what counting activations from 0 adds is 128 times the sum of a column's weights.
template <int Rows, int Bits>
void sparse_totals(const BlockInput& input, const Side& side, int64_t row, __m512 (&totals)[Rows]) {
  const BlockWeights& part = *side.part;
  const uint8_t* weights = part.tile(side.tile, input.depth);
  const uint8_t* codes = input.counted + row * input.depth;
  const __m512i zeros = _mm512_set1_epi8(static_cast<char>(128));
  for (auto& total : totals) total = _mm512_setzero_ps();
  for (int64_t b = 0; b < input.blocks; ++b) {
    __m512i sums[Rows], added_by_zeros = _mm512_setzero_si512();
    for (auto& sum : sums) sum = _mm512_setzero_si512();
    const int64_t first = b * input.block, rest = input.depth - first;
    for (int64_t k = first; k < first + (rest < input.block ? rest : input.block); k += 8) {
      const SparseRow eight = load_sparse<Bits>(weights);
      weights += part.row_bytes;
      added_by_zeros = add_dots(added_by_zeros, zeros, eight.weights);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r)
        sums[r] = add_dots(sums[r], eight.select(codes + r * input.depth + k), eight.weights);
    }
    const __m512 scale = _mm512_loadu_ps(part.scale(side.tile, b));
    for (int r = 0; r < Rows; ++r) {
      const __m512i sum = _mm512_sub_epi32(sums[r], added_by_zeros);
      totals[r] = added(totals[r], sum, scale, input.scales[(row + r) * input.blocks + b]);
    }
  }
}

template <int Rows>
void totals_of(const BlockInput& input, const Side& side, int64_t row, __m512 (*totals)[Rows]) {
  const bool has_bytes = side.part->bits == 8;
  if (side.part->is_sparse()) {
    has_bytes ? sparse_totals<Rows, 8>(input, side, row, *totals) : sparse_totals<Rows, 4>(input, side, row, *totals);
  } else {
    has_bytes ? dense_totals<Rows, 8, 1>(input, {side}, row, totals) : dense_totals<Rows, 4, 1>(input, {side}, row, totals);
  }
}

bool are_joined(const BlockPair& pair) {
  return pair.right != nullptr && pair.left->bits == pair.right->bits && !pair.left->is_sparse() && !pair.right->is_sparse();
}

template <int Rows>
void pair_rows(const BlockProduct& product, const BlockPair& pair, int64_t row) {
  const BlockInput& input = product.input;
  const Side sides[2] = {{pair.left, pair.left_tile}, {pair.right, pair.right_tile}};
  __m512 totals[2][Rows];
  if (Rows > kAlone && are_joined(pair)) {
    pair.left->bits == 8 ? dense_totals<Rows, 8, 2>(input, sides, row, totals) : dense_totals<Rows, 4, 2>(input, sides, row, totals);
  } else {
    totals_of<Rows>(input, sides[0], row, totals);
    if (pair.right != nullptr) totals_of<Rows>(input, sides[1], row, totals + 1);
  }
  const __m512 none = _mm512_setzero_ps();
  for (int r = 0; r < Rows; ++r) store_pair(product, pair, row + r, totals[0][r], pair.right != nullptr ? totals[1][r] : none);
}

void rows_of(const BlockProduct& product, const BlockPair& pair, int64_t row, int64_t count) {
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
      const __m128i bytes = _mm512_cvtsepi32_epi8(codes);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), bytes);
      if (input.counted != nullptr) {
        auto* counted = reinterpret_cast<__m128i*>(input.counted + row * input.depth + first + i);
        _mm_storeu_si128(counted, _mm_xor_si128(bytes, _mm_set1_epi8(static_cast<char>(128))));
      }
      sum = _mm512_add_epi32(sum, codes);
    }
    input.scales[index] = most / kLargest;
    input.minus_sums[index] = -_mm512_reduce_add_epi32(sum);
  }
}

void multiply_blocks_vnni(const BlockProduct& product, int64_t part, int64_t begin_pair, int64_t end_pair) {
  for (int64_t index = begin_pair; index < end_pair; ++index) {
    const BlockPair pair = pair_of(product, part, index);
    const int64_t most = are_joined(pair) ? kJoinedRows : kMaxRows;
    for (int64_t row = 0; row < product.input.rows; row += most) {
      const int64_t left = product.input.rows - row;
      rows_of(product, pair, row, left < most ? left : most);
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
