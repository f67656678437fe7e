package ggmlsteer

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

// Tolerances. float32 has 6e-8 of each number; a pass through the tiny models sums some
// hundreds of products a block, and PyTorch in float32 differs from itself in float64
// by up to 1e-5 in a log-probability and 3e-6 of a gradient's norm (make.py holds it to that).
const (
	logitTolerance    = 2e-4 // of logits of up to 30
	logProbTolerance  = 1e-4 // of log p, κ = 0.7
	lossTolerance     = 1e-4 // of one completion
	gradientTolerance = 3e-5 // of the norm of each tensor
	streamTolerance   = 1e-4 // of numbers of up to 8, which PyTorch's float32 moves by up to 1e-5
)

func TestMain(m *testing.M) {
	if name := os.Getenv(architectureToTry); name != "" {
		tryArchitecture(name)
		return
	}
	os.Exit(m.Run())
}

// near passes if the two numbers are within tolerance: NaN never is.
func near(t testing.TB, expected, found, tolerance float64, format string, args ...any) {
	t.Helper()
	require.True(t, math.Abs(expected-found) <= tolerance, "%s: expected %v, found %v, more than %v apart", fmt.Sprintf(format, args...), expected, found, tolerance)
}

func nearEach(t testing.TB, expected, found []float32, tolerance float64, format string, args ...any) {
	t.Helper()
	require.Len(t, found, len(expected), fmt.Sprintf(format, args...))
	for i := range expected {
		near(t, float64(expected[i]), float64(found[i]), tolerance, "%s [%d]", fmt.Sprintf(format, args...), i)
	}
}

// nearVector passes if ‖found − expected‖ is within tolerance of ‖expected‖.
func nearVector(t testing.TB, expected, found []float32, tolerance float64, format string, args ...any) {
	t.Helper()
	require.Len(t, found, len(expected), fmt.Sprintf(format, args...))
	error := distance(expected, found) / distance(expected, make([]float32, len(expected)))
	require.True(t, error <= tolerance, "%s: off by %v of its norm, more than %v", fmt.Sprintf(format, args...), error, tolerance)
}

func distance(a, b []float32) float64 {
	square := 0.0
	for i := range a {
		square += (float64(a[i]) - float64(b[i])) * (float64(a[i]) - float64(b[i]))
	}
	return math.Sqrt(square)
}

func inputError(t testing.TB, err error, parts ...string) {
	t.Helper()
	var input *loader.InputError
	require.ErrorAs(t, err, &input)
	for _, part := range parts {
		require.ErrorContains(t, err, part)
	}
}

// --- random models ------------------------------------------------------------

// A tensor is one of a model to be written.
type tensor struct {
	name  string
	shape []int64 // in ggml's order
	kind  loader.TensorType
	data  []byte // nil: random numbers, of type F32
}

// modelKV is the metadata of a model without tokenizer: keys are the
// architecture's own unless they begin with a slash.
func modelKV(arch string, values map[string]any) []loader.KV {
	kv := []loader.KV{{Key: "general.architecture", Value: arch}, {Key: "tokenizer.ggml.model", Value: "none"}}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		name, global := strings.CutPrefix(key, "/")
		if !global {
			name = arch + "." + name
		}
		kv = append(kv, loader.KV{Key: name, Value: values[key]})
	}
	return kv
}

func writeModel(t testing.TB, arch string, kv []loader.KV, tensors []tensor) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), arch+".gguf")
	random := rand.New(rand.NewPCG(1, 1))
	var all []loader.TensorData
	for _, w := range tensors {
		if w.data == nil {
			all = append(all, loader.TensorData{Name: w.name, Type: loader.F32, Shape: w.shape, Data: loader.Floats(randomWeights(random, arch, w))})
		} else {
			all = append(all, loader.TensorData{Name: w.name, Type: w.kind, Shape: w.shape, Data: strings.NewReader(string(w.data))})
		}
	}
	require.NoError(t, loader.WriteGGUF(path, kv, all))
	return path
}

// randomWeights are such that no part of the model saturates or vanishes.
func randomWeights(random *rand.Rand, arch string, w tensor) []float32 {
	mean, size := 0.0, 0.8/math.Sqrt(float64(w.shape[0]))
	switch {
	case strings.HasSuffix(w.name, "norm.weight"):
		mean, size = 1, 0.2
	case strings.HasSuffix(w.name, ".bias") || len(w.shape) == 1:
		size = 0.2
	case strings.Contains(w.name, "embd"):
		size = 0.5
		if strings.HasPrefix(arch, "gemma") { // its graph multiplies with √width
			size = 1 / math.Sqrt(float64(w.shape[0]))
		}
	}
	values := make([]float32, elements(w.shape))
	for i := range values {
		values[i] = float32(mean + size*random.NormFloat64())
	}
	return values
}

func elements(shape []int64) int {
	n := 1
	for _, d := range shape {
		n *= int(d)
	}
	return n
}

func openModel(t testing.TB, path string) *Model {
	t.Helper()
	m, err := open(path, testOptions())
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, m.Close())
		require.Zero(t, m.users, "sessions, decoders or calls are left")
	})
	return m
}

func randomTokens(random *rand.Rand, n, vocab int) []Token {
	tokens := make([]Token, n)
	for i := range tokens {
		tokens[i] = Token(random.IntN(vocab))
	}
	return tokens
}

func randomVector(random *rand.Rand, width int, norm float64) []float32 {
	v := make([]float32, width)
	for i := range v {
		v[i] = float32(random.NormFloat64())
	}
	factor := float32(norm / distance(v, make([]float32, width)))
	for i := range v {
		v[i] *= factor
	}
	return v
}

func ones(n int) []float32 { return slices.Repeat([]float32{1}, n) }

// added is a steering of kind add, with a vector at each layer.
func added(vectors map[int][]float32) *loader.Steering {
	s := &loader.Steering{Kind: loader.Add}
	for l := range 100 {
		if v := vectors[l]; v != nil {
			s.Layers, s.Params, s.Embd = append(s.Layers, l), append(s.Params, loader.Parameters{Vector: v}), len(v)
		}
	}
	return s
}

// --- the models of testdata/reference ---------------------------------------

var fixtureNames = []string{"gemma", "gemma2", "gemma3", "llama", "mistral", "phi3", "qwen2", "qwen3"}

// A fixture is what PyTorch computes for a model: see testdata/reference/README.md.
type fixture struct {
	Activation    string
	Width, Layers int
	Vocabulary    int
	Coldness, Eps float64
	Sequences     []struct {
		Kind   string
		Prompt int
		Tokens []Token
	}
	Cases  []fixtureCase
	Logits struct {
		Tokens             []Token
		Positions          []int
		Layer              int
		Vector             []float32
		Unsteered, Steered [][]float32
	}
	LlamaCpp struct {
		Unsteered [][]float32
	} `json:"llama_cpp_logits"`
	Continuation struct {
		Prompt []Token
		Layer  int
		Vector []float32
		Tokens []Token
	}
	ResidualNorms struct {
		Tokens []Token
		Norms  [][]float64
	} `json:"residual_norms"`
}

type fixtureCase struct {
	Name       string
	Operations []fixtureOperation
	Strengths  []struct {
		Vectors [][]float32
		Matrix  []float32
	}
	OneMinus  bool `json:"one_minus"`
	Normalize bool `json:"normalize_token_length"`
	Satisfice *float64
	LogP      [][]float64
	Losses    []float64
	Gradient  []fixtureOperation
}

type fixtureOperation struct {
	Layer                int
	Vectors, Left, Right [][]float32
}

const referenceFolder = "../testdata/reference/"

func readFixture(t testing.TB, name string) *fixture {
	t.Helper()
	data, err := os.ReadFile(referenceFolder + name + ".json")
	require.NoError(t, err)
	f := new(fixture)
	require.NoError(t, json.Unmarshal(data, f))
	require.NotEmpty(t, f.Cases)
	return f
}

func (f *fixture) caseNamed(t testing.TB, name string) fixtureCase {
	t.Helper()
	i := slices.IndexFunc(f.Cases, func(c fixtureCase) bool { return c.Name == name })
	require.True(t, i >= 0, "no case %s", name)
	return f.Cases[i]
}

// openFixture opens a model of testdata/reference; those have no tokenizer.
func openFixture(t testing.TB, name string) (*Model, *fixture) {
	t.Helper()
	path := referenceFolder + name + ".gguf"
	_, err := loader.CheckModel(path, loader.AllowNoTokenizer)
	require.NoError(t, err)
	return openModel(t, path), readFixture(t, name)
}

func operationsOf(of []fixtureOperation) (layers []int, ops []Operation) {
	for _, o := range of {
		layers = append(layers, o.Layer)
		ops = append(ops, Operation{Vectors: o.Vectors, Left: o.Left, Right: o.Right})
	}
	return layers, ops
}

// session is a case's, with the point at which to evaluate it.
func (c fixtureCase) session(t testing.TB, m *Model, f *fixture) (*Session, []Operation) {
	t.Helper()
	layers, ops := operationsOf(c.Operations)
	o := SessionOptions{Layers: layers, Coldness: f.Coldness}
	if len(ops) > 0 {
		o.Vectors, o.Rank = len(ops[0].Vectors), len(ops[0].Left)
	}
	sequences := make([]Sequence, len(f.Sequences))
	for i, s := range f.Sequences {
		sequences[i] = Sequence{Tokens: s.Tokens, Prompt: s.Prompt, Vector: c.Strengths[i].Vectors, Matrix: slices.Repeat([][]float32{c.Strengths[i].Matrix}, o.Rank)}
	}
	session, err := m.NewSession(o, sequences)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, session.Close()) })
	return session, ops
}

// evaluate returns a case's losses, what is differentiated (their sum, or under satisfice
// that of (ℓ − target)²), and its derivative with respect to each log p.
func (c fixtureCase) evaluate(f *fixture, probs [][]Prob) (losses []float64, objective float64, slopes [][]float64) {
	for i, of := range probs {
		loss, slope := 0.0, make([]float64, len(of))
		for j, p := range of {
			switch {
			case f.Sequences[i].Kind == "src" && c.OneMinus:
				rest := math.Exp(p.LogComplement) + f.Eps
				loss -= math.Log(rest)
				slope[j] = math.Exp(p.Log) / rest
			default:
				sum := math.Exp(p.Log) + f.Eps
				sign := 1.0
				if f.Sequences[i].Kind == "dst" {
					sign = -1
				}
				loss += sign * math.Log(sum)
				slope[j] = sign * math.Exp(p.Log) / sum
			}
		}
		factor := 1.0
		if c.Normalize {
			factor = 1 / float64(len(of))
			loss *= factor
		}
		losses = append(losses, loss)
		if c.Satisfice != nil {
			objective += (loss - *c.Satisfice) * (loss - *c.Satisfice)
			factor *= 2 * (loss - *c.Satisfice)
		} else {
			objective += loss
		}
		for j := range slope {
			slope[j] *= factor
		}
		slopes = append(slopes, slope)
	}
	return losses, objective, slopes
}

// gradientAt is a case's gradient at ops.
func (c fixtureCase) gradientAt(t testing.TB, s *Session, f *fixture, ops []Operation) []Operation {
	t.Helper()
	probs, err := s.Forward(context.Background(), ops)
	require.NoError(t, err)
	_, _, slopes := c.evaluate(f, probs)
	gradient, err := s.Backward(context.Background(), slopes)
	require.NoError(t, err)
	return gradient
}

// llamaModel is a llama of width 256, which every quantization divides, F32.
func llamaModel(layers, context int) ([]loader.KV, []tensor) {
	const width, inner, heads, vocab = 256, 512, 4, 300
	kv := modelKV("llama", map[string]any{
		"context_length": uint32(context), "embedding_length": uint32(width), "block_count": uint32(layers), "feed_forward_length": uint32(inner),
		"attention.head_count": uint32(heads), "attention.head_count_kv": uint32(heads / 2), "attention.layer_norm_rms_epsilon": float32(1e-5),
		"rope.dimension_count": uint32(width / heads), "vocab_size": uint32(vocab),
	})
	var tensors []tensor
	add := func(name string, shape ...int64) { tensors = append(tensors, tensor{name: name, shape: shape}) }
	add("token_embd.weight", width, vocab)
	add("output_norm.weight", width)
	add("output.weight", width, vocab)
	for l := range layers {
		block := fmt.Sprintf("blk.%d.", l)
		add(block+"attn_norm.weight", width)
		add(block+"attn_q.weight", width, width)
		add(block+"attn_k.weight", width, width/2)
		add(block+"attn_v.weight", width, width/2)
		add(block+"attn_output.weight", width, width)
		add(block+"ffn_norm.weight", width)
		add(block+"ffn_gate.weight", width, inner)
		add(block+"ffn_up.weight", width, inner)
		add(block+"ffn_down.weight", inner, width)
	}
	return kv, tensors
}
