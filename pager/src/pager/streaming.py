"""Run a cube network whose feature maps do not fit the device: layer by layer, face by face.

Norm statistics, padding and attention join the six faces, so a VAE cannot be run tile by tile or
face by face. It can be run exactly with the maps of the current layer in host memory and one face
at a time on the device: a convolution sees a face padded by its neighbours, a norm gathers the
statistics of all faces in a first pass.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from pager.layers import FACES, CubeAttnProcessor, CubeConv2d, CubeGroupNorm, pad_faces


def stream_faces(network: nn.Module, device: torch.device) -> None:
    """Let a cubified network on `device` take and give maps in host memory, in place."""
    network.to(device)
    for module in list(network.modules()):
        if isinstance(module, nn.GroupNorm):
            module.__class__ = _StreamedGroupNorm
        elif isinstance(module, CubeConv2d):
            module.__class__ = _StreamedCubeConv2d
        elif isinstance(module, nn.Conv2d):
            module.__class__ = _StreamedConv2d
        elif isinstance(module, nn.SiLU):
            module.__class__ = _StreamedSiLU
            module.register_buffer("place", torch.empty(0, device=device), persistent=False)
        elif isinstance(module, Attention):
            module.set_processor(_StreamedAttnProcessor())  # pyright: ignore[reportArgumentType]


def face_by_face(x: Tensor, device: torch.device, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `function` to every image of x (n, ...) on `device`; the result is where x is."""
    first = function(x[:1].to(device))
    out = torch.empty((len(x), *first.shape[1:]), dtype=first.dtype, device=x.device)
    out[:1] = first
    for index in range(1, len(x)):
        out[index : index + 1] = function(x[index : index + 1].to(device))
    return out


class _StreamedConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return face_by_face(input, self.weight.device, super().forward)


class _StreamedCubeConv2d(CubeConv2d):
    def forward(self, input: Tensor) -> Tensor:
        padded = (
            pad_faces(input[..., :-1, :-1])[..., 1:, 1:] if self.one_sided else pad_faces(input)
        )
        return face_by_face(
            padded,
            self.weight.device,
            lambda face: F.conv2d(
                face, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
            ),
        )


class _StreamedSiLU(nn.SiLU):
    place: Tensor  # an empty tensor that moves with the network

    def forward(self, input: Tensor) -> Tensor:
        return face_by_face(input, self.place.device, F.silu)


class _StreamedGroupNorm(CubeGroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        cubes = [self._cube(cube) for cube in input.split(FACES)]
        return cubes[0] if len(cubes) == 1 else torch.cat(cubes)

    def _cube(self, faces: Tensor) -> Tensor:
        device = self.weight.device

        def groups(face: Tensor) -> Tensor:
            return face.float().reshape(1, self.num_groups, -1)

        def statistics(face: Tensor) -> Tensor:
            return torch.stack(torch.var_mean(groups(face), -1, correction=0), -1)

        variance, mean = face_by_face(faces, device, statistics).to(device).unbind(-1)  # [6, G]
        whole = mean.mean(0, keepdim=True)
        scale = (variance + (mean - whole).square()).mean(0, keepdim=True).add(self.eps).rsqrt()

        def normalize(face: Tensor) -> Tensor:
            normed = (groups(face) - whole[..., None]) * scale[..., None]
            shape = (1, -1, *[1] * (face.dim() - 2))
            weight, bias = (p.float().view(shape) for p in (self.weight, self.bias))
            return (normed.view(face.shape) * weight + bias).to(self.weight.dtype)

        return face_by_face(faces, device, normalize)


class _StreamedAttnProcessor(CubeAttnProcessor):
    """Middle-block attention has coarse maps, which fit the device."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,  # passed by the stock blocks
    ) -> Tensor:
        maps = hidden_states.to(attn.to_q.weight.device)
        out = super().__call__(attn, maps, encoder_hidden_states, attention_mask, temb)
        return out.to(hidden_states.device)
