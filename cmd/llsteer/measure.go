package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/testdata/demo"
)

// A measurement says what a steering does to completions and to texts.
type measurement struct {
	Dst        *float64 `json:"dst_logprob,omitempty"` // mean over completions, nats
	Src        *float64 `json:"src_logprob,omitempty"`
	Perplexity *float64 `json:"perplexity,omitempty"` // of the continuations by themselves to the unsteered model; left out where all are empty
	Looping    float64  `json:"looping"`              // share of the continuations
	KL         float64  `json:"kl"`                   // from the unsteered model, on the neutral text, nats
	Sample     string   `json:"sample"`               // the first prompt's continuation
}

// A measured completion is one whose probability tells how well a steering works.
type measuredCompletion struct {
	tokens   []ggmlsteer.Token
	prompt   int // tokens of it
	dst      bool
	negative bool // steered the other way
}

// A sweeper measures steerings on the same texts.
type sweeper struct {
	writer, reader *ggmlsteer.Decoder // steered
	plain          *ggmlsteer.Decoder
	tokens         int               // of a continuation
	start          []ggmlsteer.Token // of every text: BOS, where the model has it
	neutral        []ggmlsteer.Token
}

// newSweeper has room for continuations of prompts, and for the longest text.
func newSweeper(m *ggmlsteer.Model, prompts [][]ggmlsteer.Token, neutral []ggmlsteer.Token, completions []measuredCompletion, tokens int, precision ggmlsteer.Precision) (*sweeper, error) {
	start, err := m.Tokenize("", false)
	if err != nil {
		return nil, err
	}
	s := &sweeper{tokens: tokens, start: start, neutral: neutral}
	write, read := 0, len(neutral)
	for _, p := range prompts {
		write = max(write, len(p)+tokens)
	}
	for _, c := range completions {
		read = max(read, len(c.tokens))
	}
	for _, d := range []struct {
		decoder   **ggmlsteer.Decoder
		context   int
		sequences int
	}{{&s.writer, write, min(maxBatch, len(prompts))}, {&s.reader, read, 1}, {&s.plain, max(read, len(start)+tokens), 1}} {
		if *d.decoder, err = m.NewDecoder(ggmlsteer.DecoderOptions{Context: d.context, Sequences: d.sequences, Precision: precision}); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

func (s *sweeper) close() {
	for _, d := range []*ggmlsteer.Decoder{s.writer, s.reader, s.plain} {
		if d != nil {
			d.Close()
		}
	}
}

// measure measures a steering, nil for none.
func (s *sweeper) measure(ctx context.Context, steering *loader.Steering, strength float64, prompts [][]ggmlsteer.Token, completions []measuredCompletion) (*measurement, error) {
	steer := func(d *ggmlsteer.Decoder, strength float64) error {
		if steering == nil {
			return d.Steer()
		}
		return d.Steer(ggmlsteer.Active{Steering: steering, Strength: strength})
	}
	m := &measurement{}
	for _, negative := range []bool{true, false} { // the reader is left with the strength
		sign := 1.0
		if negative {
			sign = -1
		}
		if err := steer(s.reader, sign*strength); err != nil {
			return nil, err
		}
		if err := s.readCompletions(ctx, m, completions, negative); err != nil {
			return nil, err
		}
	}
	m.average(completions)
	var err error
	if m.KL, err = ggmlsteer.Divergence(ctx, s.reader, s.plain, s.neutral); err != nil {
		return nil, err
	}
	if err := steer(s.writer, strength); err != nil {
		return nil, err
	}
	if err := s.writeTexts(ctx, m, prompts); err != nil {
		return nil, err
	}
	return m, m.check()
}

// readCompletions adds up the log-probabilities.
func (s *sweeper) readCompletions(ctx context.Context, m *measurement, completions []measuredCompletion, negative bool) error {
	for _, c := range completions {
		if c.negative != negative {
			continue
		}
		probs, err := s.reader.Logprobs(ctx, c.tokens, c.prompt, 1)
		if err != nil {
			return err
		}
		sum := &m.Src
		if c.dst {
			sum = &m.Dst
		}
		if *sum == nil {
			*sum = new(float64)
		}
		**sum += logprobOf(probs)
	}
	return nil
}

func logprobOf(probs []ggmlsteer.Prob) float64 {
	sum := 0.0
	for _, p := range probs {
		sum += p.Log
	}
	return sum
}

// average makes means of sums.
func (m *measurement) average(completions []measuredCompletion) {
	counts := map[bool]int{}
	for _, c := range completions {
		counts[c.dst]++
	}
	if m.Dst != nil {
		*m.Dst /= float64(counts[true])
	}
	if m.Src != nil {
		*m.Src /= float64(counts[false])
	}
}

// writeTexts continues the prompts, and has the unsteered model read what was written
// without the prompt: a text in another language is not what should follow, and may be
// a good one.
func (s *sweeper) writeTexts(ctx context.Context, m *measurement, prompts [][]ggmlsteer.Token) error {
	var texts []ggmlsteer.Continuation
	for some := range slices.Chunk(prompts, maxBatch) {
		written, err := s.writer.Generate(ctx, some, ggmlsteer.GenerateOptions{Tokens: s.tokens}, nil)
		if err != nil {
			return err
		}
		texts = append(texts, written...)
	}
	sum, tokens, looping := 0.0, 0, 0
	for _, text := range texts {
		if demo.Loops(text.Text) {
			looping++
		}
		before := max(1, len(s.start)) // without BOS the first token has no probability
		all := slices.Concat(s.start, text.Tokens)
		if len(all) <= before {
			continue
		}
		probs, err := s.plain.Logprobs(ctx, all, before, 1)
		if err != nil {
			return err
		}
		sum, tokens = sum+logprobOf(probs), tokens+len(probs)
	}
	m.Looping = float64(looping) / float64(len(texts))
	m.Sample = texts[0].Text
	if tokens > 0 {
		perplexity := math.Exp(-sum / float64(tokens))
		m.Perplexity = &perplexity
	}
	return nil
}

// check refuses what is no number.
func (m *measurement) check() error {
	for _, x := range []*float64{m.Dst, m.Src, m.Perplexity, &m.KL} {
		if x != nil && (math.IsNaN(*x) || math.IsInf(*x, 0)) {
			return fmt.Errorf("a log-probability is %v: the steering is too strong, or the model is damaged", *x)
		}
	}
	return nil
}

// randomLike is a steering with other directions, of the same norms: the control.
func randomLike(s *loader.Steering, seed uint64) *loader.Steering {
	random := rand.New(rand.NewPCG(seed, 0))
	like := func(v []float32) []float32 {
		r := make([]float64, len(v))
		square := 0.0
		for i := range r {
			r[i] = random.NormFloat64()
			square += r[i] * r[i]
		}
		result := make([]float32, len(v))
		for i := range r {
			result[i] = float32(r[i] * norm(v) / math.Sqrt(square))
		}
		return result
	}
	control := *s
	control.Params = make([]loader.Parameters, len(s.Params))
	for i, p := range s.Params {
		control.Params[i].Vector = like(p.Vector)
		for j := range p.Left {
			control.Params[i].Left = append(control.Params[i].Left, like(p.Left[j]))
			control.Params[i].Right = append(control.Params[i].Right, like(p.Right[j]))
		}
	}
	return &control
}
