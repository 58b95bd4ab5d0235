package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Size of a plot, and of what surrounds its drawing area.
const (
	width, height            = 720.0, 320.0
	left, right, top, bottom = 64.0, 16.0, 56.0, 44.0
	areaWidth, areaHeight    = width - left - right, height - top - bottom
	originX, originY         = left, height - bottom
	svgStyle                 = `<style>text{font:12px sans-serif;fill:#777}.t{font-size:14px}.g{stroke:#8886}.m{stroke:#8888;stroke-width:6}.l{fill:none;stroke-width:2}</style>`
)

// colors are easy to distinguish, and like the grey of the text readable on
// white and on black: not every viewer says which of them it has.
var colors = []string{"#d9603b", "#3b82d9", "#8a63c9", "#4a9e5c"}

type point struct{ x, y float64 }

type series struct {
	name   string
	points []point
}

// chart shows lines.
type chart struct {
	title, x, y string
	log         bool // both axes
	series      []series
	marks       []float64 // x of vertical bars
}

// canvas collects the elements of an SVG.
type canvas struct{ strings.Builder }

func newCanvas(title string, legend []string) *canvas {
	c := new(canvas)
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" role="img"><title>%s</title>%s`+"\n", width, height, html.EscapeString(title), svgStyle)
	c.text(left, 20, "start", title, ` class="t"`)
	x := left
	for i, name := range legend {
		fmt.Fprintf(c, `<rect x="%g" y="30" width="12" height="12" fill="%s"/>`+"\n", x, colors[i%len(colors)])
		c.text(x+16, 40, "start", name, "")
		x += 40 + 7*float64(len(name))
	}
	return c
}

func (c *canvas) text(x, y float64, anchor, text, attributes string) {
	fmt.Fprintf(c, `<text x="%.1f" y="%.1f" text-anchor="%s"%s>%s</text>`+"\n", x, y, anchor, attributes, html.EscapeString(text))
}

func (c *canvas) line(x1, y1, x2, y2 float64, class string) {
	fmt.Fprintf(c, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" class="%s"/>`+"\n", x1, y1, x2, y2, class)
}

func (c *canvas) end() string { return c.String() + "</svg>\n" }

// scale maps values to 0..1 and has marks for its axis.
type scale struct {
	low, high float64
	log       bool
	ticks     []float64
}

// newScale covers values: from zero in round steps, or from one power of ten to
// another.
func newScale(values []float64, log bool) scale {
	low, high := math.Inf(1), math.Inf(-1)
	for _, v := range values {
		if v > 0 || !log {
			low, high = min(low, v), max(high, v)
		}
	}
	if math.IsInf(high, 0) || high <= 0 {
		low, high = 1, 1
	}
	if log {
		s := scale{log: true, low: math.Floor(math.Log10(low)), high: math.Ceil(math.Log10(high))}
		s.high = max(s.high, s.low+1)
		for e := s.low; e <= s.high; e++ {
			s.ticks = append(s.ticks, math.Pow(10, e))
		}
		return s
	}
	step := math.Pow(10, math.Floor(math.Log10(high)))
	for high/step < 4 {
		step /= 2
	}
	s := scale{high: math.Ceil(high/step) * step}
	for i := 0.0; i*step <= s.high; i++ {
		s.ticks = append(s.ticks, i*step)
	}
	return s
}

func (s scale) at(v float64) float64 {
	if s.log {
		v = math.Log10(max(v, math.Pow(10, s.low)))
	}
	return (v - s.low) / (s.high - s.low)
}

// axisY draws horizontal lines with their values.
func (c *canvas) axisY(s scale, label string) {
	for _, v := range s.ticks {
		y := originY - s.at(v)*areaHeight
		c.line(left, y, width-right, y, "g")
		c.text(left-6, y+4, "end", fmt.Sprintf("%g", v), "")
	}
	c.text(left-6, top-14, "end", label, "")
}

func (p chart) svg() string {
	var names []string
	var xs, ys []float64
	for _, s := range p.series {
		names = append(names, s.name)
		for _, point := range s.points {
			xs, ys = append(xs, point.x), append(ys, point.y)
		}
	}
	c := newCanvas(p.title, names)
	x, y := newScale(xs, p.log), newScale(ys, p.log)
	c.axisY(y, p.y)
	for _, v := range x.ticks {
		c.text(originX+x.at(v)*areaWidth, originY+16, "middle", fmt.Sprintf("%g", v), "")
	}
	c.text(originX+areaWidth/2, height-8, "middle", p.x, "")
	for _, v := range p.marks {
		at := originX + min(max(x.at(v), 0), 1)*areaWidth
		c.line(at, top, at, originY, "m")
	}
	for i, s := range p.series {
		color := colors[i%len(colors)]
		var points []string
		for _, point := range s.points {
			px, py := originX+x.at(point.x)*areaWidth, originY-y.at(point.y)*areaHeight
			points = append(points, fmt.Sprintf("%.1f,%.1f", px, py))
			fmt.Fprintf(c, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", px, py, color)
		}
		fmt.Fprintf(c, `<polyline class="l" stroke="%s" points="%s"/>`+"\n", color, strings.Join(points, " "))
	}
	return c.end()
}

// barChart shows one bar per name in each group.
type barChart struct {
	title         string
	groups, names []string
	values        [][]float64 // by group, then by name
}

func (p barChart) svg() string {
	c := newCanvas(p.title, p.names)
	var all []float64
	for _, values := range p.values {
		all = append(all, values...)
	}
	y := newScale(all, false)
	c.axisY(y, "")
	slot := areaWidth / float64(max(len(p.groups), 1))
	bar := slot / float64(len(p.names)+1)
	for i, values := range p.values {
		x := originX + slot*float64(i) + bar/2
		for j, v := range values {
			h := y.at(v) * areaHeight
			fmt.Fprintf(c, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n", x, originY-h, bar*0.9, h, colors[j%len(colors)])
			c.text(x+bar*0.45, originY-h-4, "middle", fmt.Sprintf("%.0f", v), "")
			x += bar
		}
		c.text(originX+slot*(float64(i)+0.5), originY+16, "middle", p.groups[i], "")
	}
	return c.end()
}
