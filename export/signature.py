"""The interface of the canonical decoder graph: what every stage after export relies on.

`piston.core.bundle.interface.decoder_interface` says the same to programs.

| name                    | type, shape                                     | meaning                                        |
|-------------------------|-------------------------------------------------|------------------------------------------------|
| input_ids               | int64 [batch, seq]                              | tokens of this step, right-padded if ragged    |
| position_ids            | int64 [batch, seq]                              | absolute position of each token                |
| write_indices           | int64 [batch]                                   | cache slot of each row's first new token       |
| kv_lengths              | int64 [batch]                                   | write_indices + seq: the entries a step may see|
| logits_positions        | int64 [batch, k]                                | which of seq get logits                        |
| past.{i}.key / .value   | float [batch, kv_heads, capacity, head_dim]     | the cache, bound to the memory of present      |
| present.{i}.key/.value  | same                                            | the cache after this step                      |
| logits                  | float32 [batch, k, vocab]                       |                                                |

`kv_lengths` counts the padding of a ragged row: ONNX aligns the causal frontier of query j at
``kv_lengths - seq + j`` (Attention-24), which is right only when the row's queries end at kv_lengths. Padding is
seen by padding alone, and the row's next step overwrites it.
"""

OPSET = 24  # TensorScatter and Attention's nonpad_kv_seqlen arrived here
