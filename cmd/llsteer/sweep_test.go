package main

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/optimize"
	"github.com/llsteer/llsteer/testdata/demo"
	"github.com/stretchr/testify/require"
)

func TestStrengths(t *testing.T) {
	for _, c := range []struct {
		specs    []string
		expected []float64
	}{
		{nil, []float64{-2, -1.5, -1, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1, 1.5, 2}},
		{[]string{"1"}, []float64{1}},
		{[]string{"1", "-0.5", "1"}, []float64{-0.5, 1}},
		{[]string{"0.1:0.5:0.1"}, []float64{0.1, 0.2, 0.3, 0.4, 0.5}},
		{[]string{"-0.2:0.2:0.1", "3"}, []float64{-0.2, -0.1, 0.1, 0.2, 3}},
		{[]string{"1:1:5"}, []float64{1}},
		{[]string{"1:2:0.7"}, []float64{1, 1.7}},
		{[]string{"1e-12"}, []float64{1e-12}},
	} {
		found, err := parseStrengths(c.specs)
		require.NoError(t, err)
		require.Equal(t, c.expected, found, "%v", c.specs)
	}
}

// swept is a file whose unsteered text has perplexity 4 and loops in half of the texts.
func swept(strengths ...sweptStrength) *sweptFile {
	base := measured(-40, -30, 4, 0.5)
	return &sweptFile{File: "v.gguf", Unsteered: base, UnsteeredReverse: base, Strengths: strengths}
}

func measured(dst, src, perplexity, looping float64) *measurement {
	return &measurement{Dst: &dst, Src: &src, Perplexity: &perplexity, Looping: looping}
}

func TestRecommendation(t *testing.T) {
	at := func(strength, dst, src, perplexity, looping float64) sweptStrength {
		return sweptStrength{Strength: strength, measurement: measured(dst, src, perplexity, looping)}
	}
	f := swept(
		at(-2, -90, -29, 10.1, 0),   // not readable
		at(-1, -60, -30, 10, 0.5),   // gains 20, the most backwards
		at(-0.8, -56, -30, 5, 0.5),  // gains 16, just enough
		at(-0.5, -55, -10, 5, 0.5),  // gains 15
		at(0.5, -25, -90, 4, 0.5),   // gains 15
		at(0.75, -24, -36, 6, 0.75), // gains 16, just enough
		at(1, -20, -38, 10, 0.75),   // gains 20, the most
		at(1.5, -10, -50, 4, 0.76),  // loops
		at(2, -10, -50, 10.01, 0),   // not readable
	)
	forward, back := f.recommend(false), f.recommend(true)
	require.Equal(t, 0.75, forward.Strength)
	require.Equal(t, 16.0, forward.Gain)
	require.Equal(t, -0.8, back.Strength)
	require.Equal(t, 16.0, back.Gain)
	require.Equal(t, "v.gguf", forward.File)
	require.Contains(t, forward.Why, "80 %")
	require.Contains(t, forward.Why, "20.00 nats")
	require.Contains(t, forward.Why, "at most 10.00 (unsteered 4.00)")
	require.Contains(t, forward.Why, "at most 75 % (unsteered 50 %)")

	// the readings of other prompts for negative strengths
	f.UnsteeredReverse = measured(-40, -30, 1.9, 0.5)
	require.Nil(t, f.recommend(true))
	require.Equal(t, 0.75, f.recommend(false).Strength)

	// nothing gained, nothing recommended
	require.Nil(t, swept(at(1, -41, -30, 4, 0.5)).recommend(false))
	require.Nil(t, swept(at(1, -40, -30, 4, 0.5)).recommend(false))
	require.Nil(t, swept().recommend(false))

	// one kind of completions alone, and texts without a token
	only := swept(at(1, -30, -60, 4, 0.5))
	only.Unsteered.Src, only.Strengths[0].Src = nil, nil
	require.Equal(t, 10.0, only.recommend(false).Gain)
	only = swept(at(1, -30, -60, 4, 0.5))
	only.Unsteered.Dst, only.Strengths[0].Dst = nil, nil
	require.Equal(t, 30.0, only.recommend(false).Gain)
	only.Strengths[0].Perplexity = nil
	require.Nil(t, only.recommend(false))

	// of several files the one with the largest gain
	result := &sweepResult{}
	for i, dst := range []float64{-35, -20, -25} {
		f := swept(at(1, dst, -30, 4, 0.5))
		f.File = string(rune('a' + i))
		f.Recommended = f.recommend(false)
		result.add(f)
	}
	require.Len(t, result.Files, 3)
	require.Equal(t, "b", result.Recommended.File)
	require.Nil(t, result.Reverse)
}

// What a sweeper measures is what its parts give one by one.
func TestMeasure(t *testing.T) {
	path, remove, err := modelFile(demoName)
	require.NoError(t, err)
	defer remove()
	m, err := ggmlsteer.Open(path, ggmlsteer.Options{Threads: 1})
	require.NoError(t, err)
	defer m.Close()
	ctx := context.Background()
	tokenize := func(text string) []ggmlsteer.Token {
		tokens, err := m.Tokenize(text, false)
		require.NoError(t, err)
		return tokens
	}
	v := make([]float32, m.Info().Embd)
	for i := range v {
		v[i] = float32(math.Sin(float64(i)))
	}
	steering := &loader.Steering{Kind: loader.Add, Layers: []int{2}, Params: []loader.Parameters{{Vector: v}}, Embd: len(v)}
	const strength, length, tolerance = 1.5, 20, 1e-4
	prompts := [][]ggmlsteer.Token{tokenize("The color of the"), tokenize("El"), tokenize("When the game starts, each player")}
	neutral := tokenize("The bridge has two lanes.")
	var completions []measuredCompletion
	for i, prompt := range []string{"The color", "El color", "The king", "El rey"} {
		completions = append(completions, measuredCompletion{tokenize(prompt + " is es the old"), len(tokenize(prompt)), i < 3, i%2 == 1})
	}
	s, err := newSweeper(m, prompts, neutral, completions, length, ggmlsteer.F32)
	require.NoError(t, err)
	defer s.close()

	dst, src := 0.0, 0.0
	for _, c := range completions {
		way := strength
		if c.negative {
			way = -strength
		}
		probs, err := m.Logprobs(ctx, c.tokens, c.prompt, 1, ggmlsteer.F32, ggmlsteer.Active{Steering: steering, Strength: way})
		require.NoError(t, err)
		if c.dst {
			dst += logprobOf(probs) / 3
		} else {
			src += logprobOf(probs)
		}
	}
	writer, err := m.NewDecoder(ggmlsteer.DecoderOptions{Context: 40, Precision: ggmlsteer.F32})
	require.NoError(t, err)
	defer writer.Close()
	require.NoError(t, writer.Steer(ggmlsteer.Active{Steering: steering, Strength: strength}))
	sum, tokens, looping, sample := 0.0, 0, 0.0, ""
	for i, prompt := range prompts {
		texts, err := writer.Generate(ctx, [][]ggmlsteer.Token{prompt}, ggmlsteer.GenerateOptions{Tokens: length}, nil)
		require.NoError(t, err)
		probs, err := m.Logprobs(ctx, slices.Concat(tokenize(""), texts[0].Tokens), 1, 1, ggmlsteer.F32)
		require.NoError(t, err)
		sum, tokens = sum+logprobOf(probs), tokens+len(probs)
		if demo.Loops(texts[0].Text) {
			looping++
		}
		if i == 0 {
			sample = texts[0].Text
		}
	}
	require.True(t, looping > 0 && looping < 3, "%v of 3 texts loop: the test says little", looping)

	found, err := s.measure(ctx, steering, strength, prompts, completions)
	require.NoError(t, err)
	require.InDelta(t, dst, *found.Dst, tolerance)
	require.InDelta(t, src, *found.Src, tolerance)
	require.InEpsilon(t, math.Exp(-sum/float64(tokens)), *found.Perplexity, tolerance)
	require.Equal(t, looping/3, found.Looping)
	require.Equal(t, sample, found.Sample)
	require.Greater(t, found.KL, 0.01)

	unsteered, err := s.measure(ctx, nil, 0, prompts, completions)
	require.NoError(t, err)
	require.Zero(t, unsteered.KL)
	again, err := s.measure(ctx, steering, 0, prompts, completions)
	require.NoError(t, err)
	require.Equal(t, unsteered, again, "strength 0")
}

// The control has the norms of the steering, and nothing else of it.
func TestRandomLike(t *testing.T) {
	vector := func(first float32) []float32 {
		v := make([]float32, 64)
		v[0], v[1] = first, 4
		return v
	}
	s := &loader.Steering{Kind: loader.Affine, Layers: []int{1, 2}, Embd: 64, Params: []loader.Parameters{
		{Vector: vector(3), Left: [][]float32{vector(1), vector(0)}, Right: [][]float32{vector(2), vector(5)}},
		{Vector: make([]float32, 64), Left: [][]float32{vector(1), vector(0)}, Right: [][]float32{vector(2), vector(5)}},
	}}
	control := randomLike(s, 1)
	require.NoError(t, control.Validate())
	require.Equal(t, s.Layers, control.Layers)
	for i, p := range s.Params {
		c := control.Params[i]
		for name, pair := range map[string][2][][]float32{"vector": {{p.Vector}, {c.Vector}}, "left": {p.Left, c.Left}, "right": {p.Right, c.Right}} {
			require.InDeltaSlice(t, norms(pair[0]), norms(pair[1]), 1e-5, "layer %d, %s", s.Layers[i], name)
		}
	}
	along := 0.0
	for i, x := range s.Params[0].Vector {
		along += float64(x * control.Params[0].Vector[i])
	}
	require.Less(t, math.Abs(along), 0.5*25)
	require.Equal(t, control, randomLike(s, 1))
	require.NotEqual(t, control, randomLike(s, 2))
}

// plotTexts are the texts of a picture, which has to be XML.
func plotTexts(t *testing.T, panels []panel) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "p.svg")
	require.NoError(t, writePlot(path, panels))
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	var texts []string
	d := xml.NewDecoder(f)
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return texts
		}
		require.NoError(t, err)
		if data, isText := token.(xml.CharData); isText && strings.TrimSpace(string(data)) != "" {
			texts = append(texts, string(data))
		}
	}
}

func TestDescentPlot(t *testing.T) {
	var d descentPlot
	step := func(stage, iter int, loss float64, norms ...float64) {
		s := optimize.Step{Stage: stage, Iter: iter, Loss: loss}
		for i, n := range norms {
			s.Layers = append(s.Layers, optimize.LayerStep{Layer: []string{"3", "7"}[i], Norm: n})
		}
		d.step(s)
	}
	step(0, 0, 30, 1, 1)
	step(0, 1, 20, 2, 5)
	step(2, 0, 20, 2, 5)
	step(2, 1, 21, 1, 4)
	panels := d.panels(map[string]float64{"3": 1, "7": 4})
	require.Len(t, panels, 3)
	require.Equal(t, []float64{0, 1, 2, 3}, panels[0].curves[0].x)
	require.Equal(t, []float64{30, 20, 20, 21}, panels[0].curves[0].y)
	require.Equal(t, []float64{1, 5, 5, 4}, panels[1].curves[1].y)
	require.Equal(t, []float64{3, 7}, panels[2].curves[0].x)
	require.Equal(t, []float64{1, 4}, panels[2].curves[0].y)
	texts := plotTexts(t, panels)
	for _, text := range []string{"Loss", "Norm", "Norm by layer, at the end", "loss, nats", "layer 3", "layer 7"} {
		require.Contains(t, texts, text)
	}
	require.NotContains(t, texts, "-0")

	// one evaluation of one shared vector
	d = descentPlot{}
	d.step(optimize.Step{Loss: 30, Layers: []optimize.LayerStep{{Layer: "shared", Norm: 1}}})
	panels = d.panels(map[string]float64{"shared": 1})
	require.Len(t, panels, 2)
	require.NotContains(t, plotTexts(t, panels), "layer shared")
}

func TestSweepPlot(t *testing.T) {
	at := func(strength, dst, perplexity float64) sweptStrength {
		m := measured(dst, 0, perplexity, 0)
		m.Src = nil
		return sweptStrength{strength, m, m}
	}
	f := swept(at(-1, -60, 5), at(1, -20, 4000))
	f.Unsteered.Src = nil
	f.File = "folder/<a&b>.gguf"
	r := &sweepResult{Files: []sweptFile{*f}}
	panels := r.panels()
	require.Len(t, panels, 4, "there are no completions to make unlikely")
	require.Equal(t, []float64{-1, 0, 1}, panels[0].curves[0].x)
	require.Equal(t, []float64{-60, -40, -20}, panels[0].curves[0].y)
	texts := plotTexts(t, panels)
	require.Contains(t, texts, "<a&b>.gguf")
	require.Contains(t, texts, "1000", "the axis of perplexities is logarithmic")
}
