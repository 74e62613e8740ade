"""What the graph of an encoder gives of what its module of transformers returns.

Each takes the module's output and a mask bool [batch, seq] of the tokens that are not padding.
"""

from typing import Any

import torch
from torch import nn


class Pooled(nn.Module):
    """One vector a row, by the pooling of a checkpoint of sentence-transformers."""

    def __init__(self, pooling: nn.Module) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, output: Any, mask: torch.Tensor) -> torch.Tensor:
        """[batch, dim]."""
        pooled: torch.Tensor = self.pooling(output.last_hidden_state, mask)
        return pooled


class Logits(nn.Module):
    """The logits of the module's own head."""

    def forward(self, output: Any, mask: torch.Tensor) -> torch.Tensor:
        """[batch, labels], or [batch, seq, labels] of a head on every token."""
        del mask
        logits: torch.Tensor = output.logits
        return logits


class SpanLogits(nn.Module):
    """Of each token the logits that an answer starts with it, and that it ends with it."""

    def forward(self, output: Any, mask: torch.Tensor) -> torch.Tensor:
        """[batch, seq, 2]."""
        del mask
        return torch.stack((output.start_logits, output.end_logits), dim=-1)


class LastToken(nn.Module):
    """The logits of a decoder's head on the last token of each row."""

    def __init__(self, score: nn.Module) -> None:
        super().__init__()
        self.score = score

    def forward(self, output: Any, mask: torch.Tensor) -> torch.Tensor:
        """[batch, labels]."""
        logits: torch.Tensor = self.score(last_token(output.last_hidden_state, mask))
        return logits


class TokenScore(nn.Module):
    """The logit of one token less that of another, or alone, behind the last token of each row."""

    def __init__(self, true_id: int, false_id: int | None) -> None:
        super().__init__()
        self.true_id = true_id
        self.false_id = false_id

    def forward(self, output: Any, mask: torch.Tensor) -> torch.Tensor:
        """[batch, 1], of the output of a language model."""
        logits = last_token(output.logits, mask)
        score = logits[:, self.true_id]
        return (score if self.false_id is None else score - logits[:, self.false_id])[:, None]

    def as_linear(self, head: nn.Linear) -> nn.Linear:
        """The same score as one row of weights over hidden states, by the model's own head [vocab, hidden]."""
        score = nn.Linear(head.in_features, 1, bias=head.bias is not None)
        with torch.no_grad():
            for name, parameter in score.named_parameters():
                rows = getattr(head, name)
                value = rows[self.true_id] if self.false_id is None else rows[self.true_id] - rows[self.false_id]
                parameter.copy_(value.reshape(parameter.shape))
        return score.requires_grad_(requires_grad=False)


def last_token(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The hidden states [batch, hidden] of the last token of each row that is not padding."""
    last = (mask.to(torch.int64).sum(dim=1) - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
    return torch.gather(hidden, 1, last)[:, 0]


def canonical(model: Any, head: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The module to trace, with its head.

    transformers finds the last token of a decoder's row by the padding's id, which a text may have, too; the graph
    takes it from the lengths.
    """
    from transformers.modeling_layers import GenericForSequenceClassification

    if isinstance(model, GenericForSequenceClassification):
        return model.base_model, LastToken(model.score)
    if isinstance(head, TokenScore):
        return model.base_model, LastToken(head.as_linear(model.get_output_embeddings()))
    return model, head
