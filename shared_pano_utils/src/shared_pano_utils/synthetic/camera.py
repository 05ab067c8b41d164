"""Pixel grids of the three projections: centre rays, sub-pixel rays, 8x8 tiles."""

import math

import torch
from torch import Tensor

from shared_pano_utils.geometry import rays
from shared_pano_utils.synthetic.primitives import unit

TILE = 8


class PixelGrid:
    """Camera rays of an image (or of six cube faces), grouped in tiles of 8x8 pixels.

    Images are padded at the right and bottom by repeating rays until tiles fill them.

    Args:
        projection: `"erp"`, `"cube"` or `"perspective"`.
        size: (H, W); for cubes the face side S or (S, S).
        fov: Degrees, for cubes and perspective views.
        R: Rotation camera to world, (3, 3).
        device: Where the rays live.
    """

    def __init__(self, projection: str, size, *, fov: float, R: Tensor, device):
        self.projection, self.R = projection, R.float().to(device)
        if isinstance(size, int):
            size = (size, size)
        if min(size) < 1:
            raise ValueError(f"size is {tuple(size)}, both numbers must be at least 1")
        grid = rays(projection, size, fov=fov, normalize=False, device=device)  # type: ignore[arg-type]
        self.unrotated = grid.unsqueeze(0) if grid.ndim == 3 else grid  # (F, H, W, 3)
        self.frames, self.height, self.width = self.unrotated.shape[:3]
        self.rows = -(-self.height // TILE)
        self.cols = -(-self.width // TILE)
        if projection == "erp":
            self.pixel_rad = math.pi / self.height
        else:
            self.pixel_rad = 2 * math.tan(math.radians(fov) / 2) / self.width

    def to_tiles(self, image: Tensor) -> Tensor:
        """Reorder (c, F, H, W) to (c, F * tiles, 64)."""
        c = image.shape[0]
        pad_h, pad_w = self.rows * TILE - self.height, self.cols * TILE - self.width
        if pad_h or pad_w:
            row = torch.arange(self.rows * TILE, device=image.device).clamp(max=self.height - 1)
            col = torch.arange(self.cols * TILE, device=image.device).clamp(max=self.width - 1)
            image = image[:, :, row[:, None], col]
        split = image.reshape(c, self.frames, self.rows, TILE, self.cols, TILE)
        return split.transpose(3, 4).reshape(c, -1, TILE * TILE)

    def to_image(self, tiles: Tensor) -> Tensor:
        """Undo `to_tiles`: (c, F * tiles, 64) to (c, F, H, W)."""
        split = tiles.reshape(-1, self.frames, self.rows, self.cols, TILE, TILE)
        image = split.transpose(3, 4).reshape(-1, self.frames, self.rows * TILE, self.cols * TILE)
        return image[..., : self.height, : self.width]

    def _rotate(self, dirs: Tensor) -> Tensor:
        # Written out: a matrix product may round differently for other numbers of rays.
        x, y, z = (r[0] * dirs[0] + r[1] * dirs[1] + r[2] * dirs[2] for r in self.R)
        return unit(torch.stack((x, y, z)))

    def center_rays(self) -> Tensor:
        """Unit world rays through the pixel centres, (3, F * tiles, 64)."""
        return self._rotate(self.to_tiles(self.unrotated.permute(3, 0, 1, 2)))

    def sub_rays(self, index: Tensor, aa: int) -> Tensor:
        """Unit world rays through aa x aa sub-pixels.

        Args:
            index: Flat positions in the tile order, (n,).
            aa: Samples per side.

        Returns:
            (3, n, aa * aa).
        """
        tile, inner = index // (TILE * TILE), index % (TILE * TILE)
        frame, tile = tile // (self.rows * self.cols), tile % (self.rows * self.cols)
        row = (tile // self.cols * TILE + inner // TILE).clamp(max=self.height - 1)
        col = (tile % self.cols * TILE + inner % TILE).clamp(max=self.width - 1)
        step = (torch.arange(aa, device=index.device) + 0.5) / aa - 0.5
        down, right = torch.meshgrid(step, step, indexing="ij")
        down, right = down.reshape(1, -1), right.reshape(1, -1)
        if self.projection == "erp":
            lat = (0.5 - (row[:, None] + 0.5 + down) / self.height) * math.pi
            lon = ((col[:, None] + 0.5 + right) / self.width - 0.5) * 2 * math.pi
            dirs = torch.stack((lat.cos() * lon.sin(), -lat.sin(), lat.cos() * lon.cos()))
        else:
            # Faces and pinhole rays are affine in the pixel, so two differences give every offset.
            grid = self.unrotated
            last = (-1 if self.height > 1 else 0, -1 if self.width > 1 else 0)
            du = (grid[:, 0, last[1]] - grid[:, 0, 0]) / max(self.width - 1, 1)
            dv = (grid[:, last[0], 0] - grid[:, 0, 0]) / max(self.height - 1, 1)
            shift = right[..., None] * du[frame, None] + down[..., None] * dv[frame, None]
            dirs = (grid[frame, row, col][:, None] + shift).permute(2, 0, 1)
        return self._rotate(dirs)

    def edges(self, key: Tensor) -> Tensor:
        """Flat tile positions (n,) of pixels whose key (F * tiles, 64) differs from a neighbour.

        Eight neighbours; ERP images wrap around at the left and right border.
        """
        image = self.to_image(key[None])[0]
        if self.projection == "erp":
            image = torch.cat((image[..., -1:], image, image[..., :1]), dim=-1)
        edge = torch.zeros_like(image, dtype=torch.bool)
        height, width = image.shape[1:]
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            here = (slice(None), slice(0, height - dy), slice(max(-dx, 0), width - max(dx, 0)))
            there = (slice(None), slice(dy, height), slice(max(dx, 0), width - max(-dx, 0)))
            differs = image[here] != image[there]
            edge[here] |= differs
            edge[there] |= differs
        if self.projection == "erp":
            edge = edge[..., 1:-1]
        return self.to_tiles(edge[None])[0].flatten().nonzero()[:, 0]
