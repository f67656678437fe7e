package main

import (
	"cmp"
	"fmt"
	"image/color"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/optimize"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// A panel is one diagram of a picture.
type panel struct {
	title, x, y string
	log         bool // the y axis, where the values are above 0 and far apart
	fromZero    bool // the y axis
	whole       bool // only whole numbers stand at the x axis
	curves      []curve
}

// A curve has as many x as y. Curves with a name stand in the picture's legend, those
// of several panels once.
type curve struct {
	look
	x, y []float64
}

type look struct {
	name   string
	color  int // of palette
	dashed bool
}

// palette are colours that also colour-blind people tell apart (Okabe and Ito).
var palette = []color.RGBA{
	{0, 114, 178, 255}, {213, 94, 0, 255}, {0, 158, 115, 255}, {204, 121, 167, 255},
	{230, 159, 0, 255}, {86, 180, 233, 255}, {0, 0, 0, 255},
}

const (
	panelWidth, panelHeight = 4.2 * vg.Inch, 3 * vg.Inch
	legendLine              = 15
	mostPoints              = 100 // of a curve whose points are marked
	mostNames               = 12  // in a legend
	farApart                = 20  // the largest of some values is so many times the smallest
)

// writePlot draws panels, in rows of at most two, into an SVG file: a whole one or none.
func writePlot(path string, panels []panel) error {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	columns := min(2, len(panels))
	plots := make([][]*plot.Plot, (len(panels)+columns-1)/columns)
	for i := range plots {
		plots[i] = make([]*plot.Plot, columns)
	}
	for i, p := range panels {
		var err error
		if plots[i/columns][i%columns], err = p.draw(); err != nil {
			return fmt.Errorf("the picture %s: %w", path, err)
		}
	}
	looks := namedLooks(panels)
	legendHeight := vg.Length(len(looks)) * legendLine
	if len(looks) > 0 {
		legendHeight += legendLine / 2
	}
	canvas := vgsvg.New(vg.Length(columns)*panelWidth, vg.Length(len(plots))*panelHeight+legendHeight)
	whole := draw.New(canvas)
	whole.SetColor(color.White)
	whole.Fill(whole.Path())
	drawLegend(whole, looks)
	tiles := draw.Tiles{Rows: len(plots), Cols: columns, PadX: 16, PadY: 16, PadTop: 8, PadBottom: 6, PadLeft: 6, PadRight: 12}
	for i, row := range plot.Align(plots, tiles, draw.Crop(whole, 0, 0, 0, -legendHeight)) {
		for j, place := range row {
			if plots[i][j] != nil {
				plots[i][j].Draw(place)
			}
		}
	}
	return loader.WriteFile(path, func(w io.Writer) error {
		_, err := canvas.WriteTo(w)
		return err
	})
}

// namedLooks are those of the legend, each once; none where they are too many to tell apart.
func namedLooks(panels []panel) []look {
	var looks []look
	for _, p := range panels {
		for _, l := range p.curves {
			if l.name != "" && !slices.Contains(looks, l.look) {
				looks = append(looks, l.look)
			}
		}
	}
	if len(looks) > mostNames {
		return nil
	}
	return looks
}

// drawLegend draws one name below the other at the top.
func drawLegend(c draw.Canvas, looks []look) {
	const left, length, gap = 12, 24, 6
	style := plot.New().Legend.TextStyle
	style.YAlign = draw.YCenter
	for i, l := range looks {
		y := c.Max.Y - legendLine*(vg.Length(i)+0.5) - gap
		c.StrokeLine2(l.style(), left, y, left+length, y)
		c.FillText(style, vg.Point{X: left + length + gap, Y: y}, l.name)
	}
}

func (l look) style() draw.LineStyle {
	style := draw.LineStyle{Color: palette[l.color%len(palette)], Width: vg.Points(1.2)}
	if l.dashed {
		style.Dashes = []vg.Length{vg.Points(3), vg.Points(2)}
	}
	return style
}

func (p *panel) draw() (*plot.Plot, error) {
	drawn := plot.New()
	drawn.Title.Text, drawn.X.Label.Text, drawn.Y.Label.Text = p.title, p.x, p.y
	drawn.Add(plotter.NewGrid())
	for _, l := range p.curves {
		points := make(plotter.XYs, len(l.x))
		for i := range l.x {
			points[i] = plotter.XY{X: l.x[i], Y: l.y[i]}
		}
		path, marks, err := plotter.NewLinePoints(points)
		if err != nil {
			return nil, err
		}
		path.LineStyle = l.style()
		marks.Color, marks.Shape, marks.Radius = path.Color, draw.CircleGlyph{}, vg.Points(1.6)
		drawn.Add(path)
		if len(points) <= mostPoints {
			drawn.Add(marks)
		}
	}
	drawn.X.Tick.Marker, drawn.Y.Tick.Marker = roundTicks{p.whole}, roundTicks{}
	low, high := drawn.Y.Min, drawn.Y.Max
	switch {
	case p.log && low > 0 && high > farApart*low:
		drawn.Y.Scale, drawn.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	case p.fromZero && low >= 0:
		drawn.Y.Min, drawn.Y.Max = 0, high*1.05
		if high == 0 {
			drawn.Y.Max = 1
		}
	default:
		drawn.Y.Min, drawn.Y.Max = low-(high-low)/20, high+(high-low)/20
	}
	return drawn, nil
}

// roundTicks stand at multiples of 1, 2 or 5 times a power of 10, some five of them.
type roundTicks struct{ whole bool }

func (t roundTicks) Ticks(min, max float64) []plot.Tick {
	step := math.Pow(10, math.Floor(math.Log10((max-min)/5)))
	for _, factor := range []float64{5, 2} {
		if (max-min)/(factor*step) >= 3 {
			step *= factor
			break
		}
	}
	if t.whole && step < 1 {
		step = 1
	}
	var ticks []plot.Tick
	for k := math.Ceil(min/step - 1e-9); k <= max/step+1e-9; k++ {
		value := k*step + 0 // 0 has no sign then
		ticks = append(ticks, plot.Tick{Value: value, Label: strconv.FormatFloat(value, 'g', 6, 64)})
	}
	return ticks
}

// A descentPlot gathers what optimize --plot draws.
type descentPlot struct {
	steps, losses []float64
	keys          []string             // of the layers
	norms         map[string][]float64 // of each
}

// step takes an evaluation in; the steps of the output-constrained stage follow the others.
func (d *descentPlot) step(s optimize.Step) {
	if d.norms == nil {
		d.norms = map[string][]float64{}
		for _, l := range s.Layers {
			d.keys = append(d.keys, l.Layer)
		}
	}
	at := float64(s.Iter)
	if n := len(d.steps); n > 0 && at <= d.steps[n-1] {
		at = d.steps[n-1] + 1
	}
	d.steps, d.losses = append(d.steps, at), append(d.losses, s.Loss)
	for _, l := range s.Layers {
		d.norms[l.Layer] = append(d.norms[l.Layer], l.Norm)
	}
}

func (d *descentPlot) panels(final map[string]float64) []panel {
	norms := panel{title: "Norm", x: "step", y: "norm of the vector", fromZero: true, whole: true}
	layers := panel{title: "Norm by layer, at the end", x: "layer", y: "norm of the vector", fromZero: true, whole: true, curves: make([]curve, 1)}
	for i, key := range d.keys {
		l := curve{look{color: i}, d.steps, d.norms[key]}
		if len(d.keys) > 1 {
			l.name = "layer " + key
		}
		norms.curves = append(norms.curves, l)
		if layer, err := strconv.Atoi(key); err == nil {
			layers.curves[0].x = append(layers.curves[0].x, float64(layer))
			layers.curves[0].y = append(layers.curves[0].y, final[key])
		}
	}
	panels := []panel{{title: "Loss", x: "step", y: "loss, nats", whole: true, curves: []curve{{x: d.steps, y: d.losses}}}, norms}
	if len(d.keys) > 1 {
		panels = append(panels, layers)
	}
	return panels
}

// panels are what sweep --plot draws: each file in its colour, the random vector dashed.
func (r *sweepResult) panels() []panel {
	measures := []struct {
		panel
		of func(*measurement) *float64
	}{
		{panel{title: "Completions to make likely", y: "log p(dst), nats"}, func(m *measurement) *float64 { return m.Dst }},
		{panel{title: "Completions to make unlikely", y: "log p(src), nats"}, func(m *measurement) *float64 { return m.Src }},
		{panel{title: "Perplexity of what is written", y: "perplexity", log: true}, func(m *measurement) *float64 { return m.Perplexity }},
		{panel{title: "Texts that go round in loops", y: "share", fromZero: true}, func(m *measurement) *float64 { return &m.Looping }},
		{panel{title: "Divergence on neutral text", y: "KL, nats", fromZero: true}, func(m *measurement) *float64 { return &m.KL }},
	}
	var panels []panel
	for _, measure := range measures {
		p := measure.panel
		p.x = "strength"
		for i, f := range r.Files {
			name := filepath.Base(f.File)
			own, control := curve{look: look{name, i, false}}, curve{look: look{"random, of the norm of " + name, i, true}}
			for _, at := range f.points() {
				if y := measure.of(at.measurement); y != nil {
					own.x, own.y = append(own.x, at.Strength), append(own.y, *y)
				}
				if y := measure.of(at.Control); y != nil {
					control.x, control.y = append(control.x, at.Strength), append(control.y, *y)
				}
			}
			if len(own.x) == 0 { // there are no such completions
				continue
			}
			p.curves = append(p.curves, own, control)
		}
		if len(p.curves) > 0 {
			panels = append(panels, p)
		}
	}
	return panels
}

// points are a file's strengths with 0 among them: on the prompts for positive ones.
func (f *sweptFile) points() []sweptStrength {
	zero := sweptStrength{Strength: 0, measurement: f.Unsteered, Control: f.Unsteered}
	points := append(slices.Clone(f.Strengths), zero)
	slices.SortFunc(points, func(a, b sweptStrength) int { return cmp.Compare(a.Strength, b.Strength) })
	return points
}
