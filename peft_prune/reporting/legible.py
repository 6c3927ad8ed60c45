"""What keeps a picture legible: lines that do not hide each other, and names beside points that overlap nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

HIDDEN, WIDER, LARGER = 1.5, 1.8, 2.4
"""Points within which lines hide each other; by how much the lower one and its markers are then wider."""

_DISTANCES = (5.0, 12.0, 20.0, 30.0, 42.0, 56.0, 72.0)
_SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
_NEAR, _FAR = _DISTANCES[0], _DISTANCES[2]
"""Points between a name and its point; beyond the first a thin line joins them, which is seen from the third on."""


def show_hidden(axes: Any, lines: Sequence[Any]) -> None:
    """Widen lines over which later ones run, so that they are seen on both sides of them.

    Args:
        axes: Whose limits and scales are final.
        lines: In the order in which they are drawn.
    """
    axes.figure.draw_without_rendering()
    tolerance = HIDDEN * axes.figure.dpi / 72
    courses = [_places(line) for line in lines]
    depths: list[int] = []
    for place in reversed(range(len(lines))):
        above = range(place + 1, len(lines))
        hiding = [
            depths[len(lines) - 1 - other] for other in above if _hides(courses[place], courses[other], tolerance)
        ]
        depths.append(1 + max(hiding) if hiding else 0)
    for line, depth in zip(reversed(lines), depths, strict=True):
        line.set_linewidth(line.get_linewidth() + WIDER * depth)
        line.set_markersize(line.get_markersize() + LARGER * depth)


def _places(line: Any) -> dict[float, float]:
    """Where a line runs on the page: heights by place along the axis."""
    points = line.get_transform().transform(line.get_xydata())
    return dict(zip(line.get_xdata().tolist(), points[:, 1].tolist(), strict=True))


def _hides(own: Mapping[float, float], other: Mapping[float, float], tolerance: float) -> bool:
    """Whether two neighbouring points that both have, or all of them, lie upon each other."""
    met = [abs(own[x] - other[x]) < tolerance for x in sorted(own) if x in other]
    return any(map(all, itertools.pairwise(met))) or (len(met) == 1 and met[0])


def name_points(axes: Any, names: Mapping[str, tuple[float, float]], size: float = 8, marker: float = 6) -> None:
    """Write a name beside each point, where it covers no other name and no point, and if it can be no line.

    Points that lie upon each other are named together.

    Args:
        axes: Whose points and lines are drawn, with final limits.
        names: Places of the points by name.
        size: Of the letters.
        marker: Of the points, in points.
    """
    axes.figure.draw_without_rendering()
    scale = axes.figure.dpi / 72
    together = _together({name: axes.transData.transform(place) for name, place in names.items()}, scale)
    taken = [_around(place, marker * scale) for place in together.values()]
    lines = [line.get_path().transformed(line.get_transform()) for line in axes.lines]
    for name, place in together.items():
        width, height = _size_of(axes, name, size)
        fitting = [
            (any(line.intersects_bbox(box, filled=False) for line in lines), distance, offset, box)
            for distance, offset, box in _boxes(place, width, height, scale)
            if _within(box, axes.bbox) and not any(box.overlaps(other) for other in taken)
            if distance >= _FAR or _belongs(box, place, together.values())
        ]
        if fitting:
            _, distance, offset, box = min(fitting, key=lambda one: one[:2])
            taken.append(box)
            joined = {"arrowstyle": "-", "color": "0.6", "lw": 0.6, "shrinkA": 0, "shrinkB": marker / 2}
            axes.annotate(
                name,
                axes.transData.inverted().transform(place),
                xytext=offset,
                textcoords="offset points",
                fontsize=size,
                annotation_clip=False,
                arrowprops=joined if distance > _NEAR else None,
            ).set_in_layout(False)


def _together(places: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Names of points that lie upon each other as one name."""
    found: dict[str, Any] = {}
    for name, place in places.items():
        near = next((own for own, other in found.items() if abs(place - other).max() < HIDDEN * scale), None)
        if near is None:
            found[name] = place
        else:
            found = {f"{own}, {name}" if own == near else own: other for own, other in found.items()}
    return found


def _size_of(axes: Any, name: str, size: float) -> tuple[float, float]:
    text = axes.text(0, 0, name, fontsize=size, transform=None)
    box = text.get_window_extent()
    text.remove()
    return box.width, box.height


def _boxes(place: Any, width: float, height: float, scale: float) -> Iterator[tuple[float, tuple[float, float], Any]]:
    """Where a name of this size could stand around a point: how far, the offset in points, and the box on the page."""
    from matplotlib.transforms import Bbox

    for distance in _DISTANCES:
        for right, up in _SIDES:
            x = right * distance * scale - (0 if right > 0 else width if right < 0 else width / 2)
            y = up * distance * scale - (0 if up > 0 else height if up < 0 else height / 2)
            box = Bbox.from_bounds(place[0] + x, place[1] + y, width, height)
            yield distance, (x / scale, y / scale), box


def _belongs(box: Any, own: Any, places: Iterable[Any]) -> bool:
    """Whether no other point is as near to a name as its own, by which it would be read as that one's."""
    return all(other is own or _gap(box, other) > 1.5 * _gap(box, own) for other in places)


def _gap(box: Any, place: Any) -> float:
    """From a point to the nearest edge of a box."""
    return math.hypot(max(box.x0 - place[0], 0.0, place[0] - box.x1), max(box.y0 - place[1], 0.0, place[1] - box.y1))


def _around(place: Any, size: float) -> Any:
    from matplotlib.transforms import Bbox

    return Bbox.from_bounds(place[0] - size / 2, place[1] - size / 2, size, size)


def _within(box: Any, outer: Any) -> bool:
    return bool(outer.x0 <= box.x0 and box.x1 <= outer.x1 and outer.y0 <= box.y0 and box.y1 <= outer.y1)
