"""Two published architectures as class-conditional denoisers, of diffusers' classes: a UNet with cross-attention to its
class, and a diffusion transformer.

Both are called as ``F(sample, timestep, class_labels)`` (:mod:`fastdc.bundle.architectures` has the shapes); the last
label is "no class". With 128 channels and five levels, and with 12 blocks of 12 heads and patches of 4, they are the
networks of Favero et al. (arXiv 2502.03687): a UNet after Hoogeboom et al. (arXiv 2301.11093), and DiT-B/4 (Peebles &
Xie, arXiv 2212.09748).
"""

from collections.abc import Sequence

from fastdc.support import require

require("torch", extra="train")

from torch import Tensor, nn  # noqa: E402


class CrossUNetDenoiser(nn.Module):
    """diffusers' UNet2DConditionModel; a class is one token, a row of an embedding.

    Args:
        shape: Shape (c, h, w) of a sample.
        num_class_embeds: Number of class labels, the null class included.
        block_out_channels: Channels of each level; every level but the last halves the sides.
        attention: Whether each level has attention. The middle always has it.
        layers_per_block: Residual blocks per level on the way down; there is one more on the way up.
        embedding: Width of the class's token.
        heads: Number of attention heads.
        norm_num_groups: Groups of the normalisations.
        dropout: Probability of dropout inside the residual blocks.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_class_embeds: int,
        block_out_channels: Sequence[int],
        attention: Sequence[bool],
        *,
        layers_per_block: int = 2,
        embedding: int = 512,
        heads: int = 8,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require("diffusers", extra="train")
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        channels, height, width = shape
        self.embed_class = nn.Embedding(num_class_embeds, embedding)
        self.unet = UNet2DConditionModel(
            sample_size=(height, width),
            in_channels=channels,
            out_channels=channels,
            layers_per_block=layers_per_block,
            block_out_channels=tuple(block_out_channels),
            down_block_types=tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attention),
            mid_block_type="UNetMidBlock2DCrossAttn",
            up_block_types=tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)),
            encoder_hid_dim=embedding,
            encoder_hid_dim_type="text_proj",
            cross_attention_dim=embedding,
            attention_head_dim=heads,  # which this class takes for the number of heads
            norm_num_groups=norm_num_groups,
            dropout=dropout,
        )

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """The raw output F."""
        token = self.embed_class(class_labels)[:, None]
        out: Tensor = self.unet(sample, timestep, encoder_hidden_states=token, return_dict=False)[0]
        return out


class DiTDenoiser(nn.Module):
    """diffusers' DiTTransformer2DModel, whose own dropout of labels is off: a training drops them itself.

    Args:
        shape: Shape (c, h, w) of a sample, h = w.
        num_class_embeds: Number of class labels, the null class included.
        patch_size: Side of a patch, which divides the sample's.
        layers: Number of transformer blocks.
        heads: Number of attention heads.
        head_width: Width of a head.
        dropout: Probability of dropout inside the blocks.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_class_embeds: int,
        *,
        patch_size: int = 4,
        layers: int = 12,
        heads: int = 12,
        head_width: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require("diffusers", extra="train")
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

        channels, side, _ = shape
        self.dit = DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=head_width,
            in_channels=channels,
            out_channels=channels,
            num_layers=layers,
            dropout=dropout,
            attention_bias=True,
            sample_size=side,
            patch_size=patch_size,
            num_embeds_ada_norm=num_class_embeds - 1,
        )
        for block in self.dit.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0.0

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """The raw output F."""
        out: Tensor = self.dit(sample, timestep, class_labels, return_dict=False)[0]
        return out
