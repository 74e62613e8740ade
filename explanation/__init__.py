"""Why a bundle answers as it does: what it attends to, and what each word of its input changes.

Attention comes from the engine's own graph with its probabilities as further outputs (piston.graph.attention_tap), and
the graph's answers are compared with those of the graph as it is. What a word changes is measured by leaving it out
(occlusion; Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014; for words Li, Monroe
and Jurafsky, "Understanding Neural Networks through Representation Erasure", 2016), so any engine can be asked.
"""
