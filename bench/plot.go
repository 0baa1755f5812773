package bench

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// chart is a plot of lines. Its axes go from the least to the greatest that the lines hold.
type chart struct {
	Title, XLabel, YLabel string
	x, y                  axis
	lines                 []line
}

// line is a row of points, in the order of x.
type line struct {
	Name   string
	dashed bool
	points [][2]float64
}

// axis says how values become places.
type axis int

const (
	linear      axis = iota // from 0 on
	logarithmic             // what is below 10^-3 counts as that
	percentile              // 0 to below 100, each nine as far from the last
)

const leastLogarithmic = 1e-3

func (a axis) place(v float64) float64 {
	switch a {
	case logarithmic:
		return math.Log10(max(v, leastLogarithmic))
	case percentile:
		return -math.Log10(1 - min(v, 99.9999999)/100)
	}
	return v
}

// tick is a mark on an axis.
type tick struct {
	At    float64 // on the drawing
	Label string
}

// ticks are values worth a mark between two.
func (a axis) ticks(low, high float64) (values []float64) {
	switch a {
	case percentile:
		for _, v := range []float64{0, 50, 90, 99, 99.9, 99.99, 99.999, 99.9999} {
			if a.place(v) <= a.place(high)+1e-9 {
				values = append(values, v)
			}
		}
		return values
	case logarithmic:
		for decade := math.Floor(a.place(low)); decade <= a.place(high); decade++ {
			for _, m := range []float64{1, 2, 5} {
				if v := m * math.Pow(10, decade); v >= low*0.999 && v <= high*1.001 {
					values = append(values, v)
				}
			}
		}
		if len(values) > 9 { // decades alone
			var few []float64
			for _, v := range values {
				if d := math.Log10(v); math.Abs(d-math.Round(d)) < 1e-9 {
					few = append(few, v)
				}
			}
			values = few
		}
		return values
	}
	step := math.Pow(10, math.Floor(math.Log10(high/5)))
	for _, m := range []float64{1, 2, 5, 10} {
		if high/(step*m) <= 6 {
			step *= m
			break
		}
	}
	for v := 0.0; v <= high*1.0001; v += step {
		values = append(values, v)
	}
	return values
}

// Drawing is a chart with places on it, for the template.
type drawing struct {
	Title, XLabel, YLabel    string
	Width, Height            int
	Left, Right, Top, Bottom float64
	XTicks, YTicks           []tick
	Lines                    []drawnLine
}

type drawnLine struct {
	Name   string
	Points string // of a polyline
	Class  string
	Dashed bool
	Single bool // one point, which a polyline does not show
	X, Y   float64
}

const colours = 10 // as many as the style sheet has

// draw lays the chart out, ok where there is anything to show.
func (c *chart) draw() (d drawing, ok bool) {
	d = drawing{Title: c.Title, XLabel: c.XLabel, YLabel: c.YLabel, Width: 760, Height: 300, Left: 70, Right: 745, Top: 12, Bottom: 255}
	low, high := [2]float64{math.Inf(1), math.Inf(1)}, [2]float64{math.Inf(-1), math.Inf(-1)}
	for _, l := range c.lines {
		for _, p := range l.points {
			for i := range p {
				low[i], high[i] = min(low[i], p[i]), max(high[i], p[i])
				ok = true
			}
		}
	}
	if !ok {
		return d, false
	}
	for i, a := range []axis{c.x, c.y} {
		switch a {
		case linear:
			low[i] = 0
			high[i] = max(high[i], 1e-9)
			if i == 1 {
				high[i] *= 1.05
			}
		case percentile:
			low[i] = 0
		case logarithmic:
			low[i], high[i] = max(low[i], leastLogarithmic)/1.1, max(high[i], leastLogarithmic)*1.1
		}
	}
	scale := func(a axis, low, high, from, to, v float64) float64 {
		span := a.place(high) - a.place(low)
		if span <= 0 {
			span = 1
		}
		return from + (a.place(v)-a.place(low))/span*(to-from)
	}
	x := func(v float64) float64 { return scale(c.x, low[0], high[0], d.Left, d.Right, v) }
	y := func(v float64) float64 { return scale(c.y, low[1], high[1], d.Bottom, d.Top, v) }
	for _, v := range c.x.ticks(low[0], high[0]) {
		d.XTicks = append(d.XTicks, tick{x(v), short(v, c.x == percentile)})
	}
	for _, v := range c.y.ticks(low[1], high[1]) {
		d.YTicks = append(d.YTicks, tick{y(v), short(v, false)})
	}
	for i, l := range c.lines {
		var b strings.Builder
		for _, p := range l.points {
			fmt.Fprintf(&b, "%.1f,%.1f ", x(p[0]), y(p[1]))
		}
		drawn := drawnLine{Name: l.Name, Points: strings.TrimSpace(b.String()), Class: "c" + strconv.Itoa(i%colours), Dashed: l.dashed}
		if len(l.points) == 1 {
			drawn.Single, drawn.X, drawn.Y = true, x(l.points[0][0]), y(l.points[0][1])
		}
		d.Lines = append(d.Lines, drawn)
	}
	return d, true
}

// short writes a value for a mark: 12k for 12,000.
func short(v float64, whole bool) string {
	switch {
	case whole || v == 0:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case v >= 1e9:
		return strconv.FormatFloat(v/1e9, 'g', 3, 64) + "G"
	case v >= 1e6:
		return strconv.FormatFloat(v/1e6, 'g', 3, 64) + "M"
	case v >= 1e4:
		return strconv.FormatFloat(v/1e3, 'g', 3, 64) + "k"
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}
