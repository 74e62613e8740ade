"""An operator refuses inputs that do not fit each other, rather than read beyond one of them."""

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from own_kernels import need_kernels, run_alone

RNG = np.random.default_rng(0)
ROWS, DEPTH, TILES, BLOCK = 3, 128, 4, 32
WIDTH, HEADS, KV_HEADS, DIM, CAPACITY = 16 * TILES, 4, 2, 32, 20


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def codes(*shape, dtype=np.uint8):
    return RNG.integers(0, 127, shape).astype(dtype)


def blocks(depth=DEPTH, bits=8):
    return [codes(TILES, depth * bits // 32, 64), floats(TILES, -(-depth // BLOCK), 16)]


SCALE = np.float32(0.1)
INTEGER = [
    codes(1, ROWS, DEPTH),
    codes(TILES, DEPTH // 4, 64, dtype=np.int8),
    codes(WIDTH, dtype=np.int32),
    floats(WIDTH),
]
COPIES = np.array([0, 5, 9, 127] * 4, np.int64)
SPARSE = [INTEGER[0], codes(TILES, DEPTH // 8, 80, dtype=np.int8), *INTEGER[2:]]
ROTARY = [floats(CAPACITY, DIM // 2), floats(CAPACITY, DIM // 2)]
LAST = np.array([4, CAPACITY - 1], np.int32)
CACHES = [floats(2, KV_HEADS, CAPACITY, DIM) for _ in range(2)]
PACKED = floats(2, ROWS, (HEADS + 2 * KV_HEADS) * DIM)
APART = [floats(2, ROWS, KV_HEADS * DIM) for _ in range(2)]
INT8 = [codes(*cache.shape, dtype=np.int8) for cache in CACHES]
CHANNELS = [floats(KV_HEADS, DIM) for _ in range(2)]
TEXTS = [floats(3, ROWS, HEADS * DIM) for _ in range(3)]
LENGTHS = np.array([1, ROWS, 2], np.int64)
ATTENTION = {"num_heads": HEADS, "scale": 0.2}


def sparse_blocks(depth=DEPTH, bits=8):
    return [codes(TILES, depth // 8, 80 if bits == 8 else 48), floats(TILES, -(-depth // BLOCK), 16)]


# Of each operator: valid inputs, how many outputs, attributes. What follows its name says how its weights are stored.
VALID = {
    "IntegerLinear": (
        [*INTEGER, floats(WIDTH), floats(1, ROWS, 2), floats(2, WIDTH), codes(1, ROWS, DEPTH), np.float32(7)],
        1,
        {},
    ),
    "GatedLinear": (INTEGER, 1, {}),
    "GatedLinearCodes": ([*INTEGER, SCALE, np.array([1, 30], np.int64), SCALE], 3, {}),
    "IntegerLinear sparse": (
        [*SPARSE, floats(WIDTH), floats(1, ROWS, 2), floats(2, WIDTH), codes(1, ROWS, DEPTH), np.float32(7)],
        1,
        {},
    ),
    "GatedLinear sparse": (SPARSE, 1, {}),
    "BlockLinear sparse": (
        [floats(1, ROWS, DEPTH), *sparse_blocks(), *sparse_blocks(bits=4), *blocks()],
        3,
        {"block_size": BLOCK},
    ),
    "GatedBlockLinear sparse": (
        [floats(1, ROWS, DEPTH), *sparse_blocks(), *sparse_blocks(bits=4)],
        1,
        {"block_size": BLOCK},
    ),
    "SplitBlockLinear sparse": (
        [floats(1, ROWS, DEPTH), COPIES, *sparse_blocks(DEPTH + 16)],
        1,
        {"block_size": BLOCK},
    ),
    "BlockLinear": ([floats(1, ROWS, DEPTH), *blocks(), *blocks(bits=4)], 2, {"block_size": BLOCK}),
    "BiasBlockLinear": (
        [floats(1, ROWS, DEPTH), *blocks(), floats(WIDTH), *blocks(bits=4), floats(WIDTH)],
        2,
        {"block_size": BLOCK},
    ),
    "GeluBlockLinear": ([floats(1, ROWS, DEPTH), *blocks(), floats(WIDTH)], 1, {"block_size": BLOCK}),
    "TanhGeluBlockLinear": ([floats(1, ROWS, DEPTH), *blocks(bits=4), floats(WIDTH)], 1, {"block_size": BLOCK}),
    "BlockLinear4": ([floats(1, ROWS, DEPTH), *blocks(bits=4)], 1, {"block_size": BLOCK}),
    "GatedBlockLinear": ([floats(1, ROWS, DEPTH), *blocks(), *blocks(bits=4)], 1, {"block_size": BLOCK}),
    "SplitBlockLinear": ([floats(1, ROWS, DEPTH), COPIES, *blocks(DEPTH + 16)], 1, {"block_size": BLOCK}),
    "SplitGatedBlockLinear": (
        [floats(1, ROWS, DEPTH), COPIES, *blocks(DEPTH + 16), *blocks(DEPTH + 16)],
        1,
        {"block_size": BLOCK},
    ),
    "BlockRows": ([np.array([[0, 63]], np.int64), *blocks()], 1, {"block_size": BLOCK}),
    "GeluLinear": ([*INTEGER, floats(WIDTH)], 1, {"tanh": 0}),
    "GeluLinearCodes": ([*INTEGER, floats(WIDTH), SCALE, np.array([1, 63], np.int64), SCALE], 3, {"tanh": 1}),
    "SiluLinear": ([*INTEGER, floats(WIDTH)], 1, {}),
    "SiluLinearCodes": ([*INTEGER, floats(WIDTH), SCALE, np.array([1, 63], np.int64), SCALE], 3, {}),
    "ReluLinear": ([*INTEGER, floats(WIDTH)], 1, {}),
    "ReluLinearCodes": ([*INTEGER, floats(WIDTH), SCALE, np.array([1, 63], np.int64), SCALE], 3, {}),
    "Bfloat16Linear": ([floats(1, ROWS, DEPTH), codes(TILES, DEPTH // 2, 32, dtype=np.uint16), floats(WIDTH)], 1, {}),
    "GeluBfloat16Linear": (
        [floats(1, ROWS, DEPTH), codes(TILES, DEPTH // 2, 32, dtype=np.uint16), floats(WIDTH)],
        1,
        {"tanh": 1},
    ),
    "LayerNorm": (
        [floats(1, ROWS, 48), floats(1, ROWS, 48), floats(48), floats(48), None, floats(48)],
        2,
        {"epsilon": 1e-5},
    ),
    "LayerNormCodes": (
        [floats(1, ROWS, 48), floats(1, ROWS, 48), floats(48), floats(48), SCALE],
        3,
        {"epsilon": 1e-5},
    ),
    "SumTokens": ([floats(2, ROWS, 48), floats(2, ROWS, 1)], 1, {}),
    "BidirectionalAttention": ([*TEXTS, LENGTHS, None, floats(3, 1, 1, ROWS)], 1, ATTENTION),
    "BidirectionalAttentionCodes": ([*TEXTS, LENGTHS, SCALE, floats(3, HEADS, ROWS, ROWS)], 1, ATTENTION),
    "Norm": ([floats(1, ROWS, 48), floats(1, ROWS, 48), floats(48)], 2, {"epsilon": 1e-5}),
    "NormCodes": ([floats(1, ROWS, 48), floats(1, ROWS, 48), floats(48), SCALE], 2, {"epsilon": 1e-5}),
    "CrossAttention": ([floats(2, ROWS, HEADS * DIM), *CACHES, np.array([1, CAPACITY], np.int64)], 1, ATTENTION),
    "CrossAttentionCodes": ([floats(2, ROWS, HEADS * DIM), *CACHES, LENGTHS[:2], SCALE], 1, ATTENTION),
    "Attention": ([PACKED, *CACHES, LAST, *ROTARY], 3, ATTENTION),
    "AttentionCodes": (
        [PACKED[..., : HEADS * DIM], *CACHES, LAST, *ROTARY, None, None, SCALE, *APART],
        3,
        ATTENTION,
    ),
    "AttentionInt8": ([PACKED, *INT8, LAST, *ROTARY, *CHANNELS], 3, ATTENTION),
    "AttentionInt8Codes": ([PACKED, *INT8, LAST, *ROTARY, *CHANNELS, SCALE], 3, ATTENTION),
}
# Of which any number may be given: tokens, and channels that are given in float too.
FREE = {("BlockRows", 0), ("GatedLinearCodes", 5), *((f"{name}LinearCodes", 6) for name in ("Gelu", "Silu", "Relu"))}

SHORTER = {
    "last axis": lambda array: array[..., :-1],
    "first axis": lambda array: array[:-1],
    "third axis": lambda array: array[:, :, :-1],
    "no elements": lambda array: array[..., :0],
    "one axis more": lambda array: array[..., None],
    "two of one": lambda array: np.array([array, array]),
    "rank 5": lambda array: array.reshape(1, 1, 1, 1, -1),
}


def shortened():
    """Every input of every operator in every form that must be refused."""
    for name, (inputs, _, _) in VALID.items():
        for index, array in enumerate(inputs):
            if array is None or (name, index) in FREE:
                continue
            rank = np.ndim(array)
            ways = ["two of one"] if rank == 0 else ["last axis", "no elements", "rank 5"]
            ways += ["first axis"] if rank > 1 and index > 0 else []
            ways += ["third axis"] if rank == 4 else []
            ways += ["one axis more"] if rank > 1 and not ("Int8" in name and index in (6, 7)) else []  # as many scales
            for way in ways:
                yield pytest.param(name, index, way, id=f"{name}-{index}-{way}".replace(" ", "_"))


@pytest.mark.parametrize("name", VALID)
def test_inputs_that_fit_are_taken(name):
    need_kernels()
    inputs, num_outputs, attributes = VALID[name]
    assert len(run_alone(name.split()[0], inputs, num_outputs, **attributes)) == num_outputs


@pytest.mark.parametrize(("name", "index", "way"), list(shortened()))
def test_an_input_that_does_not_fit_is_refused(name, index, way):
    need_kernels()
    inputs, num_outputs, attributes = VALID[name]
    changed = list(inputs)
    changed[index] = np.ascontiguousarray(SHORTER[way](inputs[index]))
    with pytest.raises(InvalidArgument, match="piston: "):
        run_alone(name.split()[0], changed, num_outputs, **attributes)


def test_other_numbers_of_scales_than_blocks_or_one_are_refused():
    need_kernels()
    values, weights, scales = VALID["BlockLinear"][0][:3]
    for count in (1, 4):
        run_alone("BlockLinear", [values, weights, scales[:, :count]], block_size=BLOCK)
    for count in (0, 2, 3):
        with pytest.raises(InvalidArgument, match="piston: "):
            run_alone("BlockLinear", [values, weights, scales[:, :count]], block_size=BLOCK)


def test_rows_of_a_sparse_table_are_refused():
    need_kernels()
    ids = VALID["BlockRows"][0][0]
    with pytest.raises(InvalidArgument, match="a table does not fit"):
        run_alone("BlockRows", [ids, *sparse_blocks()], block_size=BLOCK)


@pytest.mark.parametrize("which", [4, 5])
@pytest.mark.parametrize("tokens", [1, 40])
def test_positions_beyond_the_rotary_tables_are_refused(which, tokens):
    need_kernels()
    caches = [floats(1, KV_HEADS, 128, DIM) for _ in range(2)]
    tables = [floats(100, DIM // 2) for _ in range(2)]
    packed = floats(1, tokens, (HEADS + 2 * KV_HEADS) * DIM)
    run_alone("Attention", [packed, *caches, np.array([99], np.int32), *tables], 3, **ATTENTION)
    with pytest.raises(InvalidArgument, match="beyond the rotary tables"):
        run_alone("Attention", [packed, *caches, np.array([100], np.int32), *tables], 3, **ATTENTION)
    tables[which - 4] = tables[which - 4][:99]
    with pytest.raises(InvalidArgument, match="rotary tables are not"):
        run_alone("Attention", [packed, *caches, np.array([98], np.int32), *tables], 3, **ATTENTION)


@pytest.mark.parametrize("last", [-1, 1, 20, 2**31 - 1, -(2**31)])
def test_lengths_outside_the_cache_are_refused(last):
    need_kernels()
    inputs, num_outputs, attributes = VALID["Attention"]
    changed = [*inputs[:3], np.array([10, last], np.int32), *inputs[4:]]
    with pytest.raises(InvalidArgument, match="outside the cache"):
        run_alone("Attention", changed, num_outputs, **attributes)


@pytest.mark.parametrize("length", [-1, ROWS + 1, 2**40])
def test_lengths_outside_the_texts_are_refused(length):
    need_kernels()
    inputs, num_outputs, attributes = VALID["BidirectionalAttention"]
    changed = [*inputs[:3], np.array([1, length, 2], np.int64), *inputs[4:]]
    with pytest.raises(InvalidArgument, match="outside the texts"):
        run_alone("BidirectionalAttention", changed, num_outputs, **attributes)


@pytest.mark.parametrize("length", [-1, 0, CAPACITY + 1, 2**40])
def test_lengths_outside_the_source_are_refused(length):
    need_kernels()
    inputs, num_outputs, attributes = VALID["CrossAttention"]
    with pytest.raises(InvalidArgument, match="outside the source"):
        run_alone("CrossAttention", [*inputs[:3], np.array([1, length], np.int64)], num_outputs, **attributes)


def test_one_rotary_table_without_the_other_is_refused():
    need_kernels()
    inputs, num_outputs, attributes = VALID["Attention"]
    with pytest.raises(InvalidArgument, match="rotary tables are not"):
        run_alone("Attention", [*inputs[:4], inputs[4], None], num_outputs, **attributes)


@pytest.mark.parametrize("heads", [-4, 0, 3, 8])
def test_heads_that_do_not_fit_the_texts_are_refused(heads):
    need_kernels()
    inputs, num_outputs, attributes = VALID["BidirectionalAttention"]
    with pytest.raises(InvalidArgument, match="piston: "):
        run_alone("BidirectionalAttention", inputs, num_outputs, **attributes | {"num_heads": heads})


@pytest.mark.parametrize("heads", [-4, 0, 3, 6])
def test_heads_that_do_not_fit_the_cache_are_refused(heads):
    need_kernels()
    inputs, num_outputs, attributes = VALID["Attention"]
    with pytest.raises(InvalidArgument, match="heads and cache"):
        run_alone("Attention", inputs, num_outputs, **attributes | {"num_heads": heads})


@pytest.mark.parametrize("block", [-32, 0, 8, 24])
@pytest.mark.parametrize("name", [name for name in VALID if "Block" in name])
def test_blocks_of_no_such_size_are_refused(name, block):
    need_kernels()
    inputs, num_outputs, _ = VALID[name]
    with pytest.raises(InvalidArgument, match="piston: "):
        run_alone(name.split()[0], inputs, num_outputs, block_size=block)


@pytest.mark.parametrize("source", [-1, DEPTH])
def test_copies_of_what_is_not_there_are_refused(source):
    need_kernels()
    inputs, num_outputs, attributes = VALID["SplitBlockLinear"]
    changed = [inputs[0], np.where(np.arange(16) == 7, source, COPIES), *inputs[2:]]
    with pytest.raises(InvalidArgument, match="not in the input"):
        run_alone("SplitBlockLinear", changed, num_outputs, **attributes)


@pytest.mark.parametrize("identifier", [-1, WIDTH])
def test_ids_outside_a_table_are_refused(identifier):
    need_kernels()
    inputs, num_outputs, attributes = VALID["BlockRows"]
    with pytest.raises(InvalidArgument, match="outside the table"):
        run_alone("BlockRows", [np.array([[0, identifier]], np.int64), *inputs[1:]], num_outputs, **attributes)


def test_parts_without_outputs_or_scales_are_refused():
    need_kernels()
    inputs, _, attributes = VALID["BlockLinear"]
    with pytest.raises(InvalidArgument, match="no output for a part"):
        run_alone("BlockLinear", inputs, 1, **attributes)
    with pytest.raises(InvalidArgument, match="no such parts"):
        run_alone("BlockLinear", inputs[:4], 2, **attributes)
