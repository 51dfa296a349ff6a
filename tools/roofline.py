"""A roofline picture: every step of a program by its arithmetic intensity and its rate, as SVG.

After Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for
multicore architectures", Communications of the ACM, 2009.
"""

from __future__ import annotations

import math
from html import escape

from secateur.backends.cpu.profile import Profile, Row

WIDTH, HEIGHT = 860, 520
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 48, 60
_COLOURS = {
    "gemm": "#2b6cb0",
    "depthwise": "#2f855a",
    "attention": "#b7791f",
    "pointwise": "#805ad5",
    "rows": "#c05621",
}
_OTHER = "#718096"


def roofline(profile: Profile) -> str:
    """The picture; a circle's area is the step's share of the time."""
    rows = [row for row in profile.rows if row.flops and row.bytes]
    chart = _Chart(rows, profile)
    total = sum(row.seconds for row in profile.rows) or 1.0
    marks = [chart.mark(row, total) for row in sorted(rows, key=lambda row: -row.seconds)]
    return "\n".join([chart.head(), *chart.grid(), *chart.roof(), *marks, *chart.legend(rows), "</svg>"]) + "\n"


class _Chart:
    def __init__(self, rows: list[Row], profile: Profile) -> None:
        self.limits = profile.limits
        ridge = self.limits.flops / self.limits.bandwidth
        intensities = [row.flops / row.bytes for row in rows] + [ridge]
        rates = [row.flops / row.seconds for row in rows] + [self.limits.flops]
        self.low_x, self.high_x = math.floor(math.log10(min(intensities))), math.ceil(math.log10(max(intensities)))
        self.low_y, self.high_y = math.floor(math.log10(min(rates))), math.log10(self.limits.flops) + 0.25

    def x(self, intensity: float) -> float:
        share = (math.log10(intensity) - self.low_x) / (self.high_x - self.low_x)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, rate: float) -> float:
        share = (math.log10(rate) - self.low_y) / (self.high_y - self.low_y)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def head(self) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
            f'font-size="13" fill="#2d3748">\n<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n'
            f'<text x="{LEFT}" y="26" font-size="16">Each kernel under the machine\'s roof '
            f"({self.limits.threads} threads; area: share of the time)</text>"
        )

    def grid(self) -> list[str]:
        lines = []
        for power in range(self.low_x, self.high_x + 1):
            at = self.x(10.0**power)
            lines.append(f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}" stroke="#e2e8f0"/>')
            lines.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{10.0**power:g}</text>')
        for power in range(self.low_y, math.floor(self.high_y) + 1):
            at = self.y(10.0**power)
            lines.append(f'<line x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}" stroke="#e2e8f0"/>')
            lines.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10.0 ** (power - 9):g}</text>')
        middle = (TOP + HEIGHT - BOTTOM) / 2
        lines.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 16}" text-anchor="middle">FLOP per byte</text>')
        lines.append(f'<text transform="translate(20 {middle}) rotate(-90)" text-anchor="middle">GFLOP/s</text>')
        return lines

    def roof(self) -> list[str]:
        flops, bandwidth = self.limits.flops, self.limits.bandwidth
        left = max(10.0**self.low_x, 10.0**self.low_y / bandwidth)
        points = [(left, left * bandwidth), (flops / bandwidth, flops), (10.0**self.high_x, flops)]
        path = " ".join(f"{self.x(i):.1f},{self.y(r):.1f}" for i, r in points)
        label = f"{flops / 1e9:.0f} GFLOP/s"
        return [
            f'<polyline points="{path}" fill="none" stroke="#1a202c" stroke-width="2"/>',
            f'<text x="{WIDTH - RIGHT}" y="{self.y(flops) - 8:.1f}" text-anchor="end">{label}</text>',
            f'<text x="{self.x(left) + 26:.1f}" y="{self.y(left * bandwidth) - 10:.1f}">{bandwidth / 1e9:.0f} GB/s '
            "from memory (what lies above comes from caches)</text>",
        ]

    def mark(self, row: Row, total: float) -> str:
        radius = 3 + 34 * math.sqrt(row.seconds / total)
        colour = _COLOURS.get(row.family, _OTHER)
        what = f"step {row.step}: {row.op} {row.result}"
        title = escape(f"{what}, {row.seconds * 1e3:.3f} ms, {row.share:.0%} of its limit")
        at = f'cx="{self.x(row.flops / row.bytes):.1f}" cy="{self.y(row.flops / row.seconds):.1f}" r="{radius:.1f}"'
        return f'<circle {at} fill="{colour}" fill-opacity="0.45" stroke="{colour}"><title>{title}</title></circle>'

    def legend(self, rows: list[Row]) -> list[str]:
        lines, at = [], WIDTH - RIGHT - 110
        for number, name in enumerate(sorted({row.family for row in rows})):
            y = HEIGHT - BOTTOM - 14 - 20 * number
            lines.append(
                f'<circle cx="{at}" cy="{y - 4}" r="6" fill="{_COLOURS.get(name, _OTHER)}" fill-opacity="0.6"/>'
            )
            lines.append(f'<text x="{at + 12}" y="{y}">{escape(name)}</text>')
        return lines
