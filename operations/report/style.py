"""How the page looks: on a phone, on a screen, on paper, by day and by night."""

STYLE = """
:root{color-scheme:light dark;--ground:#ffffff;--ink:#1d2126;--soft:#5b636d;--line:#d9dde2;
--card:#f6f7f9}
@media (prefers-color-scheme:dark){:root{--ground:#16181c;--ink:#e4e7eb;--soft:#a2aab4;
--line:#363b43;--card:#1e2126}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:66rem;background:var(--ground);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.25rem;margin:2.2rem 0 .3rem;padding-top:.6rem;border-top:1px solid var(--line)}
p{max-width:46rem;margin:.4rem 0 .8rem}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1rem;margin:.6rem 0}
a{color:inherit;text-underline-offset:.2em}
.soft,figcaption,caption{color:var(--soft)}
.row{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr));
align-items:start}
figure,.scroll{margin:0 0 1rem;padding:.7rem;background:var(--card);border:1px solid var(--line);
border-radius:.4rem;min-width:0}
figcaption,caption{font-size:.9rem;text-align:left}
caption{padding-bottom:.3rem}
.plot{display:block;width:100%;height:auto;max-width:28rem;margin:0 auto}
.plot *{stroke-linejoin:round;stroke-linecap:butt}
.scroll{overflow-x:auto;max-width:max-content}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem .2rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--line);overflow-wrap:break-word}
th[scope=row]{font-weight:500}
th[scope=row]:not(.long),td:not(.long){white-space:nowrap}
thead th{font-weight:600;white-space:nowrap}
.long{min-width:9rem;max-width:24rem;overflow-wrap:anywhere}
td img{display:block;max-width:6rem;height:auto;border:1px solid var(--line)}
@media print{:root{--ground:#fff;--ink:#000;--soft:#444;--line:#bbb;--card:#fff}
body{max-width:none;padding:0;font-size:10pt}nav{display:none}
figure,.scroll{break-inside:avoid;border-color:#ccc}.scroll{overflow:visible;max-width:none}
h2,section>p{break-after:avoid}p{break-inside:avoid}thead,caption{break-after:avoid}
tr{break-inside:avoid}#bad .scroll{break-inside:auto}
.row{grid-template-columns:1fr 1fr}table{font-size:8pt}}
"""
