package optimize

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

// reference is testdata/reference.json; see reference.py.
var reference struct {
	Model     fakeWeights
	Sequences []struct {
		Example, Side, Prompt int
		Tokens                []ggmlsteer.Token
		Strengths             []float32
		Target                float64
	}
	Cases    []referenceCase
	Descents []struct {
		Case    string
		LR      float64
		MaxNorm float64 `json:"max_norm"`
		Steps   []struct {
			Loss    float64
			Vectors [][]float64
		}
	}
	Slices struct {
		Length   int
		Selected map[string][]int
	}
}

type referenceCase struct {
	Name     string
	Layers   []int
	Shared   bool
	Start    [][]float32
	Options  map[string]any
	Loss     float64
	Losses   []float64
	Gradient [][]float64
}

func TestMain(m *testing.M) {
	data, err := os.ReadFile("testdata/reference.json")
	if err == nil {
		err = json.Unmarshal(data, &reference)
	}
	if err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// job is the reference's case as a job for a fakeModel.
func (c referenceCase) job(t *testing.T) *Job {
	t.Helper()
	targets := make([]float64, len(reference.Sequences))
	for i, s := range reference.Sequences {
		targets[i] = s.Target
	}
	job := &Job{
		Options: DefaultOptions(),
		Layers:  Layers{List: c.Layers},
		Shared:  c.Shared,
		Examples: []Example{
			{Prompt: "ca", Src: []string{"bd"}, Dst: []string{"d"}, SrcTargets: targets[:1], DstTargets: targets[1:2]},
			{Prompt: "b", Dst: []string{"bca", "a"}, DstTargets: targets[2:], Token: span(t, "1:"), Negative: true},
		},
		Start: map[string]loader.Parameters{},
	}
	for i, key := range job.layerKeys(c.Layers) {
		job.Start[key] = loader.Parameters{Vector: c.Start[i]}
	}
	for name, value := range c.Options {
		text, err := json.Marshal(value)
		require.NoError(t, err)
		require.NoError(t, optionNamed(name).Set(&job.Options, strings.Trim(string(text), `"`)))
	}
	return job
}

func span(t *testing.T, s string) *Span {
	t.Helper()
	span, err := ParseSpan(s)
	require.NoError(t, err)
	return span
}

func ptr[T any](x T) *T { return &x }

type fakeWeights struct {
	Embedding [][]float64   // [vocabulary][width]
	Blocks    [][][]float64 // [layers][width][width]
	Head      [][]float64   // [vocabulary][width]
}

// A fakeModel is the model of testdata/reference.py in float64, with its gradient
// worked out by hand. Its texts are of the letters a to d, tokens 1 to 4 behind a BOS
// of 0, and "dd" is one token, like d. "<a>" is the control token 1 where it is asked for.
type fakeModel struct {
	fakeWeights
	noBOS     bool
	context   int // 0: ample
	noGrad    error
	streams   [][][]float64 // what StreamNorms returns
	streamsOf [][]ggmlsteer.Token
	// after the forward and backward pass of evaluation n, from 0
	forwardHook  func(n int, probs [][]ggmlsteer.Prob) error
	backwardHook func(n int, weights [][]float64, gradients []ggmlsteer.Operation) error
	session      *fakeSession // the last
}

func newFake() *fakeModel { return &fakeModel{fakeWeights: reference.Model} }

func (m *fakeModel) Info() ggmlsteer.Info {
	info := ggmlsteer.Info{Name: "fake", Arch: "analytic", Embd: len(m.Head[0]), Layers: len(m.Blocks), Vocab: len(m.Head), TrainContext: m.context}
	if info.TrainContext == 0 {
		info.TrainContext = 64
	}
	return info
}

func (m *fakeModel) Tokenize(text string, parseSpecial bool) ([]ggmlsteer.Token, error) {
	if parseSpecial {
		text = strings.ReplaceAll(text, "<a>", "a")
	}
	text = strings.NewReplacer("<", "b", ">", "c").Replace(text)
	var tokens []ggmlsteer.Token
	if !m.noBOS {
		tokens = append(tokens, 0)
	}
	for _, r := range strings.ReplaceAll(text, "dd", "d") {
		tokens = append(tokens, r-'a'+1)
	}
	return tokens, nil
}

func (m *fakeModel) Chat(system, user string) ([]ggmlsteer.Token, error) {
	return m.ChatCompletion(system, user, "")
}

func (m *fakeModel) ChatCompletion(system, user, completion string) ([]ggmlsteer.Token, error) {
	return m.Tokenize("a"+system+"b"+user+"c"+completion, false)
}

func (m *fakeModel) Differentiable([]int) error { return m.noGrad }

func (m *fakeModel) StreamNorms(_ context.Context, texts [][]ggmlsteer.Token, layers []int) ([][][]float64, error) {
	m.streamsOf = texts
	if m.streams != nil {
		return m.streams, nil
	}
	norms := make([][][]float64, len(layers))
	for l := range norms {
		for _, text := range texts {
			norms[l] = append(norms[l], slices.Repeat([]float64{float64(10 * (layers[l] + 1))}, len(text)))
		}
	}
	return norms, nil
}

func (m *fakeModel) newSession(o ggmlsteer.SessionOptions, seqs []ggmlsteer.Sequence) (evaluator, error) {
	m.session = &fakeSession{model: m, options: o, sequences: seqs}
	return m.session, nil
}

type fakeSession struct {
	model              *fakeModel
	options            ggmlsteer.SessionOptions
	sequences          []ggmlsteer.Sequence
	ops                []ggmlsteer.Operation // of the last forward
	forwards, backward int
	closed             bool
}

func (s *fakeSession) BatchTokens() int { return 7 }
func (s *fakeSession) Close() error     { s.closed = true; return nil }

// A pass is the forward pass of one sequence.
type pass struct {
	tanh  [][][]float64 // [block][token][width]
	probs [][]float64   // [token][vocabulary]
}

func (s *fakeSession) pass(seq ggmlsteer.Sequence) pass {
	var p pass
	m := s.model
	var stream [][]float64
	for _, t := range seq.Tokens {
		stream = append(stream, slices.Clone(m.Embedding[t]))
	}
	for l, block := range m.Blocks {
		if at := slices.Index(s.options.Layers, l); at >= 0 {
			for i, x := range stream {
				axpy(float64(seq.Vector[0][i]), doubles(s.ops[at].Vectors[0]), x)
			}
		}
		sum := make([]float64, len(stream[0]))
		tanh := make([][]float64, len(stream))
		for i, x := range stream {
			axpy(1, x, sum)
			mean := make([]float64, len(sum))
			axpy(1/float64(i+1), sum, mean)
			tanh[i] = product(block, mean)
			for k := range tanh[i] {
				tanh[i][k] = math.Tanh(tanh[i][k])
			}
		}
		for i, x := range stream {
			axpy(1, tanh[i], x)
		}
		p.tanh = append(p.tanh, tanh)
	}
	for _, x := range stream {
		probs := product(m.Head, x)
		sum := 0.0
		for k := range probs {
			probs[k] = math.Exp(s.options.Coldness * probs[k])
			sum += probs[k]
		}
		for k := range probs {
			probs[k] /= sum
		}
		p.probs = append(p.probs, probs)
	}
	return p
}

func (s *fakeSession) Forward(_ context.Context, ops []ggmlsteer.Operation) ([][]ggmlsteer.Prob, error) {
	s.ops = ops
	var probs [][]ggmlsteer.Prob
	for _, seq := range s.sequences {
		p := s.pass(seq)
		var of []ggmlsteer.Prob
		for i := seq.Prompt; i < len(seq.Tokens); i++ {
			others := 0.0
			for k, q := range p.probs[i-1] {
				if k != int(seq.Tokens[i]) {
					others += q
				}
			}
			of = append(of, ggmlsteer.Prob{Log: math.Log(p.probs[i-1][seq.Tokens[i]]), LogComplement: math.Log(others)})
		}
		probs = append(probs, of)
	}
	s.forwards++
	if s.model.forwardHook != nil {
		return probs, s.model.forwardHook(s.forwards-1, probs)
	}
	return probs, nil
}

func (s *fakeSession) ForwardObserved(context.Context, []ggmlsteer.Operation) ([][]ggmlsteer.Prob, [][][]float32, error) {
	panic("the fake observes no layer")
}

func (s *fakeSession) BackwardObserved(context.Context, [][]float64, [][][]float32) ([]ggmlsteer.Operation, error) {
	panic("the fake observes no layer")
}

func (s *fakeSession) Backward(_ context.Context, weights [][]float64) ([]ggmlsteer.Operation, error) {
	m := s.model
	width := len(m.Head[0])
	sum := make([][]float64, len(s.options.Layers))
	for at := range sum {
		sum[at] = make([]float64, width)
	}
	for n, seq := range s.sequences {
		p := s.pass(seq)
		dx := make([][]float64, len(seq.Tokens))
		for i := range dx {
			dx[i] = make([]float64, width)
		}
		for i := seq.Prompt; i < len(seq.Tokens); i++ {
			for k, q := range p.probs[i-1] {
				slope := -q
				if k == int(seq.Tokens[i]) {
					slope++
				}
				axpy(weights[n][i-seq.Prompt]*s.options.Coldness*slope, m.Head[k], dx[i-1])
			}
		}
		for l := len(m.Blocks) - 1; l >= 0; l-- {
			dmean := make([]float64, width) // of every mean that a token is in, per token
			for i := len(dx) - 1; i >= 0; i-- {
				for row, t := range p.tanh[l][i] {
					axpy(dx[i][row]*(1-t*t)/float64(i+1), m.Blocks[l][row], dmean)
				}
				axpy(1, dmean, dx[i])
			}
			if at := slices.Index(s.options.Layers, l); at >= 0 {
				for i := range dx {
					axpy(float64(seq.Vector[0][i]), dx[i], sum[at])
				}
			}
		}
	}
	gradients := make([]ggmlsteer.Operation, len(sum))
	for at, g := range sum {
		v := make([]float32, width)
		for k := range v {
			v[k] = float32(g[k])
		}
		gradients[at].Vectors = [][]float32{v}
	}
	s.backward++
	if s.model.backwardHook != nil {
		return gradients, s.model.backwardHook(s.backward-1, weights, gradients)
	}
	return gradients, nil
}

func product(matrix [][]float64, x []float64) []float64 {
	y := make([]float64, len(matrix))
	for i, row := range matrix {
		for k := range row {
			y[i] += row[k] * x[k]
		}
	}
	return y
}
