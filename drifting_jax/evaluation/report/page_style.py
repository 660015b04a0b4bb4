"""The style sheet of a report: phones, wide screens, dark pages, paper."""

STYLE = """
:root {
  --paper: #f6f7f9; --card: #ffffff; --ink: #22333b; --soft: #5c6874; --line: #dde2e8;
  --mark: #b4233f; --tint: #fdf0f2; --warn: #8a5300; --warn-tint: #fff6e0; --warn-line: #e3a528;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #12171c; --card: #1b2128; --ink: #e3e8ed; --soft: #98a4b0; --line: #313a44;
    --mark: #ff8fa0; --tint: #3a2229; --warn: #ffce73; --warn-tint: #332a16; --warn-line: #b98419;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem clamp(0.75rem, 3vw, 2rem) 3rem; }
h1 { font-size: clamp(1.4rem, 1rem + 2vw, 2.1rem); line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.15rem; margin: 0 0 0.75rem; }
section {
  background: var(--card); border: 1px solid var(--line); border-radius: 0.75rem;
  padding: clamp(0.9rem, 2vw, 1.4rem); margin-top: 1.25rem;
}
section > p { margin: 0 0 0.9rem; color: var(--soft); max-width: 46rem; }
a { color: inherit; }
img { display: block; max-width: 100%; height: auto; }
figure { margin: 0; }
small, .key, figcaption { font-size: 0.8rem; color: var(--soft); }
.where { color: var(--soft); margin: 0 0 0.75rem; }

.tiles {
  display: grid; gap: 0.75rem; margin: 0;
  grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
}
.tile {
  background: var(--card); border: 1px solid var(--line); border-radius: 0.75rem;
  padding: 0.7rem 1rem; max-width: 20rem;
}
.tile dt { color: var(--soft); font-size: 0.85rem; }
.tile dd { margin: 0; font-variant-numeric: tabular-nums; }
.tile b { font-size: 1.6rem; line-height: 1.25; font-weight: 650; }
.tile small { white-space: nowrap; }
.tile span { display: block; color: var(--soft); font-size: 0.8rem; }

.notes { background: var(--warn-tint); border-color: var(--warn-line); border-left-width: 0.4rem; }
.notes h2 { color: var(--warn); margin-bottom: 0.4rem; }
.notes ul { margin: 0; padding-left: 1.2rem; }
.notes li + li { margin-top: 0.3rem; }
.notes li, dd { overflow-wrap: anywhere; }

.scroll { overflow-x: auto; container-type: inline-size; }
table { border-collapse: collapse; min-width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.75rem; text-align: right; vertical-align: top; white-space: nowrap; }
th:first-child {
  text-align: left; position: sticky; left: 0; background: var(--card); padding-left: 0;
}
thead th:not(:first-child) { width: 6rem; }
thead th { font-size: 0.85rem; font-weight: 600; color: var(--soft); }
tbody { border-top: 1px solid var(--line); }
tbody th { font-weight: 600; }
td small { display: block; line-height: 1.2; }
td.best { background: var(--tint); color: var(--mark); }
td.broken { background: var(--warn-tint); color: var(--warn); font-weight: 600; }
td.real, td.missing { color: var(--soft); }
.definition td { text-align: left; padding: 0 0 0.5rem; white-space: normal; }
.definition div {
  position: sticky; left: 0; width: 100cqw; padding-right: 0.5rem;
  font-size: 0.8rem; line-height: 1.4; color: var(--soft);
}
.source { white-space: nowrap; }
.key { margin: 0.75rem 0 0; }

.curve img { width: 42rem; margin: 0 auto; border-radius: 0.5rem; }
.pictures {
  display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
}
.pictures .wide { grid-column: 1 / -1; }
.pictures figcaption { margin-top: 0.5rem; font-size: 0.85rem; }
.pictures b { display: block; color: var(--ink); font-size: 0.95rem; }

.neighbors {
  display: grid; gap: 0.9rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--tiles) * 4.4rem), 1fr));
}
.row { display: grid; grid-template-columns: repeat(var(--tiles), minmax(0, 7rem)); gap: 0.35rem; }
.row img { width: 100%; }
.row figure:first-child img { outline: 2px solid var(--mark); outline-offset: 1px; }
.row figure:first-child { margin-right: 0.35rem; }
.row figure:first-child figcaption { color: var(--mark); font-weight: 600; }
.row figcaption {
  margin-top: 0.2rem; text-align: center; font-size: 0.75rem; font-variant-numeric: tabular-nums;
}

.protocol {
  display: grid; gap: 0.5rem 2rem; margin: 0; font-size: 0.9rem; line-height: 1.4;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr));
}
.protocol div { display: grid; grid-template-columns: 7.5rem 1fr; gap: 0.75rem; }
.protocol dt { color: var(--soft); overflow-wrap: anywhere; }
.protocol dd { margin: 0; }

@media (max-width: 40rem) {
  th, td { padding-inline: 0.5rem; }
  thead th:not(:first-child) { width: auto; }
  th:first-child { white-space: normal; min-width: 7rem; max-width: 8.5rem; }
  tbody th { overflow-wrap: anywhere; }
  .protocol div { grid-template-columns: 6rem 1fr; }
}

@media print {
  html { font-size: 10px; }
  body { background: none; font-size: 1rem; }
  .scroll { overflow: visible; }
  main { max-width: none; padding: 0; }
  section, .tile { border-color: #bbb; }
  .tile, .row, .pictures figure, tbody, .curve { break-inside: avoid; }
  h2 { break-after: avoid; }
  .notes, td.best, td.broken { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
