package main

import (
	"bytes"
	"fmt"
	"html"
)

// Sizes of the chart, in SVG units.
const (
	rowHeight  = 76
	labelWidth = 250
	barWidth   = 470
	chartWidth = labelWidth + barWidth + 190
	headHeight = 84
)

var colours = map[string]string{meridian: "#0b6e4f", runc: "#9aa5b1", crun: "#c8ccd2", plain: "#c8ccd2"}

// chart draws one group of bars per figure that has someone to compare with, each scaled to its longest bar.
func chart(figures []Figure) []byte {
	var rows []Figure
	for _, f := range figures {
		if f.Ratio > 0 {
			rows = append(rows, f)
		}
	}
	var svg bytes.Buffer
	height := headHeight + rowHeight*len(rows) + 10
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="14" fill="#1f2933">`+"\n",
		chartWidth, height, chartWidth, height)
	fmt.Fprintf(&svg, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", chartWidth, height)
	fmt.Fprintf(&svg, `<text x="24" y="34" font-size="20" font-weight="600">Meridian beside containerd and plain CRIU</text>`+"\n")
	fmt.Fprintf(&svg, `<text x="24" y="58" fill="#52606d">Medians of one run on one machine, kernel %s. Shorter is better, but for pods per second.</text>`+"\n", html.EscapeString(kernel()))
	for i, f := range rows {
		group(&svg, headHeight+i*rowHeight, f)
	}
	svg.WriteString("</svg>\n")
	return svg.Bytes()
}

func group(svg *bytes.Buffer, top int, f Figure) {
	longest := 0.0
	for _, s := range f.Of {
		longest = max(longest, s.P50)
	}
	fmt.Fprintf(svg, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", labelWidth-12, top+24, html.EscapeString(f.What))
	fmt.Fprintf(svg, `<text x="%d" y="%d" text-anchor="end" font-weight="600" fill="%s">%.1fx</text>`+"\n", labelWidth-12, top+44, colours[meridian], f.Ratio)
	line := top + 6
	for _, who := range []string{meridian, runc, crun, plain} {
		s, ok := f.Of[who]
		if !ok {
			continue
		}
		width := max(2, s.P50/longest*barWidth)
		fmt.Fprintf(svg, `<rect x="%d" y="%d" width="%.1f" height="16" rx="2" fill="%s"/>`+"\n", labelWidth, line, width, colours[who])
		fmt.Fprintf(svg, `<text x="%.1f" y="%d" font-size="12" fill="#52606d">%s %s  %s</text>`+"\n",
			float64(labelWidth)+width+8, line+13, short(s.P50), f.Unit, who)
		line += 20
	}
}
