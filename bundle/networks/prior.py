"""The prior: P(NET2) of every voxel given images and arm, before any noisy outcome is seen.

Three things are known before any training, and a network with slices as channels cannot find them in some thousand
iterations: where new lesions come in a population, where the patient has old ones, and that an enlargement touches
one. The prior starts as the first and reads the others as planes of its input.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bundle.arms import CLASSES, NULL_ARM
from bundle.brightness import expand_bright
from bundle.networks.loads import lesion_loads

# Of the images: FLAIR, T2 and gadolinium lesions of w000; the same of w048, and NET2.
NUM_VOLUMES = 7
_NUM_PLANES = NUM_VOLUMES + 1 + 5 + 3  # see `PriorNetwork.forward`
_NUM_DENSITIES = 12  # see `_densities`
_MASKS = (1, 2, 4, 5, 6)
_BRIGHTNESS = (2, 2.5, 3, 3.5, 4, 4.5)  # of old lesions, in interquartile ranges above the brain's median
_NUM_SUMMARY = 2 * NUM_VOLUMES + len(_MASKS) + 2 * len(_BRIGHTNESS)  # see `_summary`
_DENSITY_MM = ((3, 5, 5), (7.5, 12, 12), (15, 28, 28))  # standard deviations along S, H, W
_VOXEL_MM, _CELL_MM = (3, 2, 2), (3, 4, 4)  # the densities are at half the resolution in plane
_PEAK_MM, _LEAST_PEAK = 1.5, 0.03  # smoothing before the maxima of a mask are taken, and the least that counts
# The map of a population covers so many standard deviations of the brain's voxels about their mean, S, H, W.
_MAP_SHAPE, _MAP_REACH = (24, 48, 56), 2.5  # about 2.7, 3.5 and 3.5 mm a cell
_OUTSIDE = 6.0  # less half log-odds outside the brain


class PriorNetwork(nn.Module):
    """A small 3D UNet with a population's frequency map as offset.

    It works on cells of 2 x 2 voxels in plane, and on voxels at the end.

    Args:
        channels: width of each level; between two the resolution is halved along all axes.
        num_blocks: blocks of each level, on the way down and on the way up.
        context_channels: width of the summary of the whole patient (arm, loads and numbers of lesions, pooled features)
            that steers the way up.
        voxel_channels: features that each voxel of a cell gets, and width of the block that works on voxels.

    Attributes:
        map_shape: S, H, W of the population's map, in coordinates of the brain.
    """

    map_shape = _MAP_SHAPE

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 96),
        num_blocks: int = 2,
        context_channels: int = 64,
        voxel_channels: int = 16,
    ) -> None:
        super().__init__()
        self.stem = Conv3d(4 * _NUM_PLANES + _NUM_DENSITIES, channels[0], 1)
        widths = [channels[0], *channels]
        # The first level has most of the voxels: smaller kernels there.
        point, flat, cube = (1, 1, 1), (1, 3, 3), (3, 3, 3)
        self.down = nn.ModuleList(
            nn.Sequential(*(Block(b if n else a, b, cube if level else flat, cube) for n in range(num_blocks)))
            for level, (a, b) in enumerate(zip(widths, widths[1:]))
        )
        self.context = nn.Sequential(
            nn.Linear(2 * channels[-1] + len(CLASSES) + _NUM_SUMMARY, context_channels),
            nn.SiLU(),
            nn.Linear(context_channels, context_channels),
            nn.SiLU(),
        )
        self.up = nn.ModuleList(
            nn.ModuleList(
                Block(b if n else a + b, b, flat if level else point, cube if level else flat, context_channels)
                for n in range(num_blocks)
            )
            for level, (a, b) in reversed(list(enumerate(zip([*channels[1:], 0], channels))))
        )
        self.to_voxels = Conv3d(channels[0], 4 * voxel_channels, 1)
        self.voxels = Block(voxel_channels + _NUM_PLANES, voxel_channels, cube, cube, context_channels)
        self.last = Conv3d(voxel_channels, 1, 1)
        # Enlargements begin beside bright lesions: too rare for the layers above to learn it soon.
        self.rim = Conv3d(2 * len(_BRIGHTNESS), 1, 1, bias=False)
        self.level = zero_linear(context_channels, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        nn.init.zeros_(self.rim.weight)
        # Half the log-odds of NET2 in a population, in coordinates of the brain.
        self.register_buffer("population", torch.full((1, 1, *_MAP_SHAPE), -4.0))

    def forward(self, volumes: Tensor, arm: Tensor) -> Tensor:
        """Half the log-odds of NET2, (B, S, H, W).

        Args:
            volumes: (B, 7, S, H, W), an unknown one is all 0; H is left to right. H and W are even.
            arm: (B,) class indices.
        """
        # bf16 would be too coarse for coordinates.
        with torch.no_grad(), torch.autocast(volumes.device.type, enabled=False):
            brain = brain_of(volumes)
            volumes = linear_flair(volumes)
            coordinates = brain_coordinates(brain)
            planes = torch.cat([volumes, _touching(volumes), coordinates], dim=1)
            brightness = _brightness(volumes, brain)
            densities, numbers, rim = _densities(volumes), _summary(volumes, brightness), _rim(volumes, brightness)
            offset = sample_map(self.population.to(volumes.dtype), coordinates)[:, 0] - _OUTSIDE * (1 - brain[:, 0])
        x = self.stem(_channels_last(torch.cat([_to_cells(planes), densities], dim=1)))
        skips = []
        for level, blocks in enumerate(self.down):
            x = blocks(F.avg_pool3d(x, 2, ceil_mode=True) if level else x)
            skips.append(x)
        one_hot = F.one_hot(arm, len(CLASSES)).to(x.dtype)
        summary = [x.mean((2, 3, 4)), x.amax((2, 3, 4)), one_hot, numbers.to(x.dtype)]
        context = self.context(torch.cat(summary, dim=1))
        x = skips.pop()
        for level, blocks in enumerate(self.up):
            if level:
                skip = skips.pop()
                x = torch.cat([F.interpolate(x, size=skip.shape[2:], mode="trilinear"), skip], dim=1)
            for block in blocks:
                x = block(x, context)
        x = torch.cat([_to_voxels(self.to_voxels(x)), planes.to(x.dtype)], dim=1)
        x = self.voxels(x, context)
        x = (self.last(x) + self.rim(_channels_last(rim)))[:, 0]
        return (x + self.level(context)[:, :, None, None]).float() + offset

    @torch.no_grad()
    def start_from_population(self, frequency: Tensor) -> None:
        """Take the frequency of NET2 in a population as offset, until training changes what is added to it.

        Args:
            frequency: `_MAP_SHAPE`, in [0, 1], in coordinates of the brain: the mean of `to_map` over patients.
        """
        cells_mm = (2.7, 3.5, 3.5)  # of the map in a brain of usual size
        smooth = blur(frequency[None, None].float(), [6 / mm for mm in cells_mm])
        smooth = (smooth + smooth.flip(3)) / 2  # no side has more lesions than the other
        self.population.copy_(smooth.clamp(1e-6, 0.5).logit() / 2)


class PriorAlone(nn.Module):
    """The prior as a network of its own: one tensor in, one out, as `bundle.networks.slab_unet.ForecastNetwork`.

    It ignores z_t, so x0 at the noisiest level is the prior. FLAIR is not predicted.

    Args:
        prior: with its weights.
        num_slices: S.
    """

    def __init__(self, prior: PriorNetwork, num_slices: int) -> None:
        super().__init__()
        self.prior, self.num_slices = prior, num_slices

    def forward(self, x: Tensor) -> Tensor:
        num_images = NUM_VOLUMES * self.num_slices
        z_t, images, planes = x.split([x.shape[1] - num_images - 2, num_images, 2], dim=1)
        arm = known_arm(planes[:, 1, 0, 0].round().long())
        half_log_odds = self.prior(images.unflatten(1, (NUM_VOLUMES, -1)), arm)
        return torch.cat([torch.zeros_like(z_t[:, self.num_slices :]), half_log_odds], dim=1)

    def start_from_population(self, frequency: Tensor) -> None:
        """See `PriorNetwork.start_from_population`."""
        self.prior.start_from_population(frequency)


class Conv3d(nn.Conv3d):
    """nn.Conv3d that a CPU computes as fast for one sample as for several: torch takes a path three times as slow."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing() or torch.compiler.is_compiling():  # ONNX has no such operation
            return super().forward(x)
        one_on_cpu = x.device.type == "cpu" and len(x) == 1 and x.dtype == torch.float32
        if not one_on_cpu or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        settings = self.padding, self.stride, self.dilation, self.groups
        return torch.mkldnn_convolution(x, self.weight, self.bias, *settings)


class Block(nn.Module):
    """Two 3D convolutions with group norms, the second steered by the context and skipped: (B, a, ...) -> (B, b, ...).

    Args:
        inputs, outputs: channels.
        first, second: kernel sizes.
        context_channels: width of the context; 0 for none.
    """

    def __init__(
        self, inputs: int, outputs: int, first: Sequence[int], second: Sequence[int], context_channels: int = 0
    ) -> None:
        super().__init__()
        self.first = Conv3d(inputs, outputs, tuple(first), padding=tuple(k // 2 for k in first))
        self.second = Conv3d(outputs, outputs, tuple(second), padding=tuple(k // 2 for k in second))
        groups = math.gcd(outputs, 4)
        self.first_norm, self.second_norm = nn.GroupNorm(groups, outputs), nn.GroupNorm(groups, outputs)
        self.film = zero_linear(context_channels, 2 * outputs) if context_channels else None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = F.silu(self.first_norm(self.first(_channels_last(x))))
        change = self.second_norm(self.second(_channels_last(x)))
        if self.film is not None and context is not None:
            scale, shift = self.film(context)[:, :, None, None, None].chunk(2, dim=1)
            change = change * (1 + scale) + shift
        return x + F.silu(change)


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts as zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def known_arm(arm: Tensor) -> Tensor:
    """Class indices; any number that is none means unknown."""
    return torch.where((arm >= 0) & (arm < NULL_ARM), arm, NULL_ARM)


def brain_of(volumes: Tensor) -> Tensor:
    """1 in the brain, 0 outside, (B, 1, S, H, W): where no known FLAIR is -1. All 1 if none is known."""
    return ((volumes[:, :1] > -1) & (volumes[:, 3:4] > -1)).to(volumes.dtype)


def brain_coordinates(brain: Tensor) -> Tensor:
    """Place of each voxel in the brain: (B, 1, S, H, W) -> (B, 3, S, H, W), along S, H, W.

    The mean of the brain's voxels is 0 and their standard deviation 1 along each axis: a quick registration, of
    translation and scale.
    """
    total, coordinates = brain.sum((1, 2, 3, 4)).clamp(min=1), []
    for axis in (2, 3, 4):
        size = brain.shape[axis]
        profile = brain.sum([other for other in (1, 2, 3, 4) if other != axis])  # (B, size)
        index = torch.arange(size, dtype=brain.dtype, device=brain.device)
        mean = (profile @ index) / total
        offset = index - mean[:, None]  # (B, size)
        deviation = ((profile * offset.square()).sum(1) / total).sqrt().clamp(min=1)
        shape = [brain.shape[0], 1, 1, 1, 1]
        shape[axis] = size
        coordinates.append((offset / deviation[:, None]).reshape(shape).expand_as(brain))
    return torch.cat(coordinates, dim=1)


def sample_map(values: Tensor, coordinates: Tensor) -> Tensor:
    """A map in coordinates of the brain, (1 or B, C, *`_MAP_SHAPE`), at the voxels that have these coordinates.

    Args:
        values: the map.
        coordinates: (B, 3, S, H, W), of `brain_coordinates`.

    Returns:
        (B, C, S, H, W).
    """
    where = (coordinates / _MAP_REACH).flip(1).permute(0, 2, 3, 4, 1)  # grid_sample wants W, H, S last
    values = values.expand(where.shape[0], -1, -1, -1, -1)
    return F.grid_sample(values, where, padding_mode="border", align_corners=True)


def to_map(values: Tensor, brain: Tensor) -> Tensor:
    """The inverse: values of voxels (B, C, S, H, W) in coordinates of the brain, (B, C, *`_MAP_SHAPE`); 0 outside."""
    axes = []
    for coordinate, axis in zip(brain_coordinates(brain).unbind(1), (1, 2, 3)):
        line = coordinate.movedim(axis, 1).flatten(2)[:, :, 0]  # (B, size): it depends on this axis alone
        step = line[:, 1:2] - line[:, :1]
        wanted = torch.linspace(-_MAP_REACH, _MAP_REACH, _MAP_SHAPE[axis - 1], device=values.device)
        axes.append(2 * (wanted - line[:, :1]) / (step * (line.shape[1] - 1)) - 1)  # (B, cells) in [-1, 1] of the grid
    s, h, w = axes
    shape = (len(values), *_MAP_SHAPE)
    lines = (w[:, None, None, :], h[:, None, :, None], s[:, :, None, None])
    where = torch.stack([line.expand(shape) for line in lines], dim=-1)
    return F.grid_sample(values, where, padding_mode="zeros", align_corners=True)


def blur(x: Tensor, deviations: Sequence[float]) -> Tensor:
    """Gaussian smoothing of (B, C, S, H, W), standard deviations in voxels; nothing lies outside."""
    for axis, deviation in zip((2, 3, 4), deviations):
        index = torch.arange(x.shape[axis], dtype=x.dtype, device=x.device)
        kernel = torch.exp(-0.5 * ((index[:, None] - index) / deviation).square())
        kernel = kernel / (deviation * math.sqrt(2 * math.pi))
        x = (x.transpose(axis, -1) @ kernel).transpose(axis, -1)
    return x


def lesion_peaks(masks: Tensor) -> Tensor:
    """1 in the middle of each lesion, 0 elsewhere: (B, C, S, H, W), of binary masks of that shape.

    The maxima of the smoothed mask. Old lesions flow together; what was one lesion once is still one maximum, so that
    their sum is nearer to the number of lesions than that of connected components is (correlation of the logarithms
    .98 and .93, 16 simulated patients).
    """
    smooth = blur(masks, [_PEAK_MM / mm for mm in _VOXEL_MM])
    # Of neighbours with the same value one is a maximum: these slopes cancel in no step to a neighbour.
    for axis, slope in ((2, 2e-6), (3, 6e-6), (4, 18e-6)):
        index = torch.arange(masks.shape[axis], dtype=masks.dtype, device=masks.device)
        smooth = smooth * (1 + slope * index).reshape([-1 if axis == other else 1 for other in range(5)])
    return ((smooth > _LEAST_PEAK) & (smooth == neighbourhood_max(smooth))).to(masks.dtype)


def _lesions(volumes: Tensor) -> Tensor:
    """1 in every T2 lesion seen so far, (B, 1, S, H, W)."""
    return (volumes[:, [1, 4, 6]] > 0).any(1, keepdim=True).to(volumes.dtype)


def _touching(volumes: Tensor) -> Tensor:
    """(B, 1 + 5, S, H, W): FLAIR of w048 in old lesions, and around them what the nearest of their voxels show.

    Around: that there is a lesion, its FLAIR signal of both visits, that it is new, that it enhances.
    """
    flair_0, _, _, flair, _, gd, net2 = (x[:, None] for x in volumes.unbind(1))
    lesion = _lesions(volumes)
    new, enhancing = ((gd > 0) | (net2 > 0)).to(volumes.dtype), (gd > 0).to(volumes.dtype)
    shown = [lesion, lesion * (flair + 1) / 2, lesion * (flair_0 + 1) / 2, new, enhancing]
    around = neighbourhood_max(torch.cat(shown, dim=1)) * (1 - lesion)
    return torch.cat([shown[1], around], dim=1)


def _densities(volumes: Tensor) -> Tensor:
    """(B, 12, S, H / 2, W / 2): how much of the surroundings is old or recent lesion, and how many lesions there are.

    Smoothed by three Gaussians each: log(1 + 5 x fraction), and log(1 + number under the Gaussian). A large lesion
    counts once: the next one comes where many have come, not where much volume has.
    """
    recent = (volumes[:, 5:6] > 0) | (volumes[:, 6:7] > 0)
    lesion = (volumes[:, 1:2] > 0) | (volumes[:, 4:5] > 0) | recent
    masks = torch.cat([lesion, recent], dim=1).to(volumes.dtype)
    cells = F.avg_pool3d(masks, (1, 2, 2))
    numbers = 4 * F.avg_pool3d(lesion_peaks(masks), (1, 2, 2))  # in each cell; ONNX has no divisor_override
    densities = []
    for mm in _DENSITY_MM:
        deviations = [of / cell for of, cell in zip(mm, _CELL_MM)]
        under = math.prod(math.sqrt(2 * math.pi) * deviation for deviation in deviations)  # cells
        densities += [(5 * blur(cells, deviations)).log1p(), (under * blur(numbers, deviations)).clamp(min=0).log1p()]
    return torch.cat(densities, dim=1)


def _brightness(volumes: Tensor, brain: Tensor) -> Tensor:
    """FLAIR of both visits in interquartile ranges above the brain's median: (B, 2, S, H, W); 0 where it is unknown.

    Lesions hardly change the quartiles, so a lesion of some kind has the same value in patients with few and many.
    """
    flair = volumes[:, [0, 3]]
    tissue = flair.masked_fill(brain == 0, math.nan).flatten(2)
    q1, median, q3 = tissue.nanquantile(tissue.new_tensor([0.25, 0.5, 0.75]), dim=2)[:, :, :, None, None, None]
    return (flair - median) / (q3 - q1).clamp(min=0.05)


def _rim(volumes: Tensor, brightness: Tensor) -> Tensor:
    """(B, 12, S, H, W): around old lesions, how bright the brightest voxel they touch is, as soft steps.

    At w048, and the less bright of both visits: what is bright at both is no noise.
    """
    lesion = _lesions(volumes)
    shown = torch.cat([brightness[:, 1:], brightness.amin(1, keepdim=True)], dim=1).clamp(min=0)
    around = neighbourhood_max(lesion * shown) * (1 - lesion)
    return torch.cat([torch.sigmoid(5 * (around - level)) * (around > 0) for level in _BRIGHTNESS], dim=1)


def _summary(volumes: Tensor, brightness: Tensor) -> Tensor:
    """(B, 31): loads of all volumes, numbers of lesions of each mask, and of bright ones at each visit, as log(1 + n).

    Activity differs between patients more than anything else, and numbers of lesions tell it better than volumes do.
    """
    masks = (volumes[:, _MASKS] > 0).to(volumes.dtype)  # (B, 5, S, H, W)
    old = ((volumes[:, 1:2] > 0) | (volumes[:, 4:5] > 0)).to(volumes.dtype)
    bright = [old * (brightness[:, v : v + 1] > level) for v in (0, 1) for level in _BRIGHTNESS]
    numbers = lesion_peaks(torch.cat([masks, *bright], dim=1)).sum((2, 3, 4)).log1p()
    return torch.cat([lesion_loads(volumes), numbers], dim=1)


def neighbourhood_max(x: Tensor) -> Tensor:
    """Largest of a voxel >= 0 and its 26 neighbours, (B, C, S, H, W): a tenth of the time of max_pool3d on a CPU."""
    plane = F.max_pool2d(x.flatten(1, 2), 3, stride=1, padding=1).unflatten(1, x.shape[1:3])
    padded = F.pad(plane, (0, 0, 0, 0, 1, 1))
    return torch.maximum(torch.maximum(padded[:, :, :-2], padded[:, :, 2:]), plane)


def linear_flair(volumes: Tensor) -> Tensor:
    """The volumes (B, C, ...), in the order of `NUM_VOLUMES`, with linear FLAIR up to 3; masks as they are."""
    is_flair = torch.tensor([index not in _MASKS for index in range(volumes.shape[1])], device=volumes.device)
    return torch.where(is_flair[:, None, None, None], expand_bright(volumes), volumes)


def _to_cells(x: Tensor) -> Tensor:
    """(B, C, S, H, W) -> (B, 4 C, S, H / 2, W / 2)."""
    return F.pixel_unshuffle(x.transpose(1, 2), 2).transpose(1, 2)


def _to_voxels(x: Tensor) -> Tensor:
    """The inverse of `_to_cells`."""
    return F.pixel_shuffle(x.transpose(1, 2), 2).transpose(1, 2)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)  # faster on a CPU
