"""How the pages look: one style sheet, light and dark."""

LIGHT = ("#2468c9", "#d9730d", "#009d6d", "#8a497d", "#9d66ff", "#731d00", "#009bd6", "#180a7a")
DARK = ("#6ea8ff", "#f5a35c", "#08dca7", "#f73878", "#8a38f0", "#8d7607", "#b7ffff", "#fff044")
# Eight colours of lines, at least 3:1 against their page, that differ also to eyes without red, green or blue cones
# (Machado et al. 2009, https://doi.org/10.1109/TVCG.2009.113).
PAGES = ("#ffffff", "#14171c")


def colours(of: tuple[str, ...]) -> str:
    """The lines' colours as CSS variables."""
    return " ".join(f"--line{number}: {colour};" for number, colour in enumerate(of))


def keys(number: int) -> str:
    """A line's sign in legends, and all other lines faint while the pointer is on it."""
    others = f"main:has(.line{number}:hover) svg g:not(.series{number})"
    return f".line{number}::before {{ background: var(--line{number}); }}\n{others} {{ opacity: .12; }}"


SHEET = (
    f"""
:root {{ color-scheme: light dark; --page: {PAGES[0]}; --text: #1d2430; --soft: #5c6675; --rule: #dfe3e8;
  --panel: #f6f7f9; --right: 70 130 220; --wrong: 230 120 40; --good: #e4f3e6; {colours(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ --page: {PAGES[1]}; --text: #e4e7ec; --soft: #98a2b1; --rule: #2d333d;
  --panel: #1c2027; --right: 60 115 205; --wrong: 200 95 25; --good: #1d3a26; {colours(DARK)} }} }}
{chr(10).join(keys(number) for number in range(len(LIGHT)))}
"""
    + """
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 28px 18px 60px; }
h1 { font-size: 1.7rem; margin: 0 0 14px; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 34px 0 10px; padding-bottom: 4px; border-bottom: 1px solid var(--rule); }
h3 { font-size: .95rem; margin: 0 0 6px; } h3 + p { margin-top: 0; }
a { color: var(--line0); }
p, .soft { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 10px; color: var(--soft); }
.tiles div { background: var(--panel); border-radius: 8px; padding: 10px 14px; }
.tiles b { display: block; font-size: 1.5rem; color: var(--text); font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 18px 28px; }
figure { margin: 0; } figcaption { font-weight: 600; } svg { width: 100%; height: auto; display: block; }
svg text { font-size: 11px; fill: var(--soft); } svg .end { font-weight: 700;
  paint-order: stroke; stroke: var(--page); stroke-width: 3px; }
svg g { transition: opacity .12s; }
.key { font: 400 .85rem system-ui, sans-serif; color: var(--soft); margin-left: 12px; display: inline-block; }
.keys { margin: 0 0 12px -12px; }
[class*=line]::before { content: ""; display: inline-block; width: 14px; height: 3px; margin: 0 5px 3px 0; }
.examples { display: grid; grid-template-columns: repeat(6, 1fr); gap: 18px 16px; margin: 0 0 26px; max-width: 860px; }
@media (max-width: 600px) { .examples { grid-template-columns: repeat(3, 1fr); gap: 14px 12px; } }
.examples figcaption { font-weight: 400; font-size: .85rem; line-height: 1.35; overflow-wrap: anywhere; }
.examples b { font-weight: 600; } .examples span { color: var(--soft); display: block; }
.examples img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--panel);
  border-radius: 6px; margin-bottom: 5px; image-rendering: pixelated; }
.scroll { overflow: auto; max-height: 36rem; } .whole, .beside .scroll { max-height: none; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 3px 14px 3px 0; vertical-align: top; } th { font-weight: 500; }
tbody tr + tr > * { border-top: 1px solid var(--rule); }
.facts th { color: var(--soft); white-space: nowrap; } .facts td { overflow-wrap: anywhere; }
.numbers td, .numbers thead th:not(:first-child), .counts tr > :last-child { text-align: right; }
thead th { color: var(--soft); position: sticky; top: 0; background: var(--page); }
.side { display: flex; flex-wrap: wrap; gap: 24px 48px; } .side > * { max-width: 100%; }
.matrix td, .matrix th { border: 1px solid var(--rule); padding: 3px 7px; text-align: right; min-width: 1.4em; }
.matrix thead td { border: 0; } .matrix caption { text-align: left; color: var(--soft); padding-bottom: 6px; }
.matrix th { white-space: nowrap; max-width: 11em; overflow: hidden; text-overflow: ellipsis; }
.matrix tbody th { position: sticky; left: 0; background: var(--page); }
.matrix .upright span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 11em; overflow: hidden; }
.right { background: rgb(var(--right) / calc(.75 * var(--share))); }
.wrong { background: rgb(var(--wrong) / calc(.9 * var(--share))); }
pre { background: var(--panel); border-radius: 8px; padding: 12px 14px; overflow: auto; }
summary { cursor: pointer; margin-bottom: 8px; }
.legend { list-style: none; margin: 0 0 14px; padding: 0; overflow-wrap: anywhere; }
.legend li { padding: 3px 0; } .legend span { color: var(--soft); margin-left: 10px; }
.legend b::before, .runs b::before { width: 18px; height: 4px; border-radius: 2px; margin: 0 7px 3px 0; }
.runs { table-layout: fixed; width: min(9.5rem + 10rem * var(--runs), max(100%, 9.5rem + 6.2rem * var(--runs))); }
.runs th:first-child { position: sticky; left: 0; z-index: 1; background: var(--page); color: var(--soft);
  width: 9.5rem; box-sizing: border-box; overflow-wrap: anywhere; }
.runs thead th:first-child { z-index: 2; } .runs thead b { color: var(--text); }
.runs td, .runs thead span { overflow-wrap: anywhere; }
.runs thead span, .runs small { display: block; color: var(--soft); font-size: .8rem; line-height: 1.25; }
.runs mark { background: var(--good); color: inherit; border-radius: 4px; padding: 1px 6px; margin: 0 -6px;
  font-weight: 650; }
.runs em { font-style: normal; color: var(--soft); }
"""
)
