"""The fully connected layers fc6, fc7 and fc8."""

from torch import Tensor, nn

from vggdist.layers.dropout import KeyedDropout


class FCLayer(nn.Module):
    """Linear, ReLU, dropout (fc6, fc7); the last layer (fc8) is linear alone.

    Dropout after the ReLU is the paper's place for it. torchvision once had it before fc6 and its
    errors fell by about a point with the move (pytorch/vision pull request 107).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        number: int,
        dropout: float = 0.0,
        last: bool = False,
    ) -> None:
        """Builds the layer.

        Args:
            in_features: units that come in.
            out_features: units that go out.
            number: the layer's number in the paper's count, 6 to 8; its dropout masks depend on it.
            dropout: dropout ratio; not used in the last layer.
            last: neither ReLU nor dropout, for logits.
        """
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.dropout = None if last else KeyedDropout(dropout, number)

    def forward(self, x: Tensor, dropout_keys: Tensor | None = None) -> Tensor:
        """(n, in_features) -> (n, out_features); `dropout_keys` (n,) as in `KeyedDropout`."""
        units: Tensor = self.linear(x)
        if self.dropout is None:
            return units
        dropped: Tensor = self.dropout(units.relu(), dropout_keys)
        return dropped
