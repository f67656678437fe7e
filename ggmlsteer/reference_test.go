package ggmlsteer

import (
	"cmp"
	"context"
	"math"
	"slices"
	"testing"

	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

// What PyTorch finds, in float32, for the same weights: testdata/reference.

func eachFixture(t *testing.T, test func(t *testing.T, m *Model, f *fixture)) {
	for _, name := range fixtureNames {
		t.Run(name, func(t *testing.T) {
			m, f := openFixture(t, name)
			test(t, m, f)
		})
	}
}

func TestReferenceCases(t *testing.T) {
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		require.Equal(t, []int{f.Width, f.Layers, f.Vocabulary}, []int{m.Info().Embd, m.Info().Layers, m.Info().Vocab})
		var most worst
		for _, c := range f.Cases {
			t.Run(c.Name, func(t *testing.T) {
				s, ops := c.session(t, m, f)
				probs, err := s.Forward(context.Background(), ops)
				require.NoError(t, err)
				require.Len(t, probs, len(c.LogP))
				for i := range probs {
					require.Len(t, probs[i], len(c.LogP[i]))
					for j, p := range probs[i] {
						near(t, c.LogP[i][j], p.Log, logProbTolerance, "log p of target %d of sequence %d", j, i)
						near(t, math.Log(-math.Expm1(p.Log)), p.LogComplement, logProbTolerance, "log(1 − p) of target %d of sequence %d", j, i)
						most.logP = max(most.logP, math.Abs(c.LogP[i][j]-p.Log))
					}
				}
				losses, _, slopes := c.evaluate(f, probs)
				for i := range losses {
					near(t, c.Losses[i], losses[i], lossTolerance, "loss of sequence %d", i)
				}
				gradient, err := s.Backward(context.Background(), slopes)
				if len(ops) == 0 {
					inputError(t, err, "without steered layers")
					return
				}
				require.NoError(t, err)
				_, expected := operationsOf(c.Gradient)
				require.Len(t, gradient, len(expected))
				for i, g := range gradient {
					layer := c.Operations[i].Layer
					for what, pair := range map[string][2][][]float32{
						"vectors": {expected[i].Vectors, g.Vectors}, "left": {expected[i].Left, g.Left}, "right": {expected[i].Right, g.Right},
					} {
						a, b := slices.Concat(pair[0]...), slices.Concat(pair[1]...)
						if len(a) > 0 || len(b) > 0 {
							nearVector(t, a, b, gradientTolerance, "gradient of %s at layer %d", what, layer)
							most.gradient = max(most.gradient, distance(a, b)/distance(a, make([]float32, len(a))))
						}
					}
				}
			})
		}
		t.Logf("largest errors: log p %.1e, gradient %.1e", most.logP, most.gradient)
	})
}

// lastLogits are those behind a fixture's prompt.
func lastLogits(t *testing.T, m *Model, f *fixture) (prompt []Token, logits []float32) {
	prompt = f.Logits.Tokens
	rows, err := newDecoder(t, m, DecoderOptions{Context: len(prompt) + 1, Precision: F32}).Logits(context.Background(), prompt, len(prompt))
	require.NoError(t, err)
	return prompt, rows[len(prompt)-1]
}

// Where a probability is nearly 1, which a large coldness makes of the likeliest token, 1 − p keeps its
// digits: it is the sum of the others' probabilities.
func TestComplementNearOne(t *testing.T) {
	const coldness, tolerance = 20, 0.05 // logits are off by 1e-4 or so, and κ times that
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		prompt, last := lastLogits(t, m, f)
		top := slices.Index(last, slices.Max(last))
		others := 0.0
		for i, z := range last {
			if i != top {
				others += math.Exp(coldness * (float64(z) - float64(last[top])))
			}
		}
		s, err := m.NewSession(SessionOptions{Coldness: coldness}, []Sequence{{Tokens: append(slices.Clone(prompt), Token(top)), Prompt: len(prompt)}})
		require.NoError(t, err)
		defer s.Close()
		probs, err := s.Forward(context.Background(), nil)
		require.NoError(t, err)
		near(t, math.Log(others)-math.Log1p(others), probs[0][0].LogComplement, tolerance, "log(1 − p), p = 1 − %g", others)
	})
}

// And so does its gradient: 1 − p is the sum of the other probabilities, and none of their gradients cancels.
func TestComplementGradientNearOne(t *testing.T) {
	const others, tolerance = 1e-6, 1e-5 // what comes of a float32 1 − p is 4e-3 and more
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		prompt, last := lastLogits(t, m, f)
		order := slices.SortedFunc(slices.Values(last), func(a, b float32) int { return cmp.Compare(b, a) })
		top := slices.Index(last, order[0])
		coldness := -math.Log(others) / float64(order[0]-order[1])
		sequences := make([]Sequence, len(last))
		for i := range sequences {
			sequences[i] = Sequence{Tokens: append(slices.Clone(prompt), Token(i)), Prompt: len(prompt), Vector: [][]float32{slices.Repeat([]float32{1}, len(prompt)+1)}}
		}
		s, err := m.NewSession(SessionOptions{Layers: []int{1}, Vectors: 1, Coldness: coldness}, sequences)
		require.NoError(t, err)
		defer s.Close()
		gradient := func(weight func(i int, probs [][]Prob) float64) []float32 {
			probs, err := s.Forward(context.Background(), []Operation{{Vectors: [][]float32{make([]float32, f.Width)}}})
			require.NoError(t, err)
			weights := make([][]float64, len(probs))
			for i := range probs {
				weights[i] = []float64{weight(i, probs)}
			}
			g, err := s.Backward(context.Background(), weights)
			require.NoError(t, err)
			return g[0].Vectors[0]
		}
		expected := gradient(func(i int, probs [][]Prob) float64 {
			if i == top {
				return 0
			}
			return math.Exp(probs[i][0].Log - probs[top][0].LogComplement)
		})
		found := gradient(func(i int, probs [][]Prob) float64 {
			if i != top {
				return 0
			}
			return -math.Exp(probs[i][0].Log - probs[i][0].LogComplement)
		})
		t.Logf("off by %.1e of its norm", distance(expected, found)/distance(expected, make([]float32, len(expected))))
		nearVector(t, expected, found, tolerance, "gradient of log(1 − p)")
	})
}

// worst are the largest errors, for people.
type worst struct{ logP, gradient float64 }

// The decoder agrees with PyTorch as well, on the cases that a steering file can express.
func TestReferenceCasesDecoded(t *testing.T) {
	for _, name := range []string{"unsteered", "layer_0", "layer_1", "last", "all", "middle_prompt_only", "middle_negative", "layer_0_and_middle_affine"} {
		t.Run(name, func(t *testing.T) {
			eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
				c := f.caseNamed(t, name)
				steering := &loader.Steering{Kind: loader.Add, Embd: f.Width, PromptOnly: name == "middle_prompt_only"}
				for _, o := range c.Operations {
					steering.Layers = append(steering.Layers, o.Layer)
					steering.Params = append(steering.Params, loader.Parameters{Vector: o.Vectors[0], Left: o.Left, Right: o.Right})
					if o.Left != nil {
						steering.Kind = loader.Affine
					}
				}
				for i, s := range f.Sequences {
					probs, err := m.Logprobs(context.Background(), s.Tokens, s.Prompt, f.Coldness, F32, Active{Steering: steering, Strength: float64(c.Strengths[i].Vectors[0][0])})
					require.NoError(t, err)
					require.Len(t, probs, len(c.LogP[i]))
					for j, p := range probs {
						near(t, c.LogP[i][j], p.Log, logProbTolerance, "log p of target %d of sequence %d", j, i)
						near(t, math.Log(-math.Expm1(p.Log)), p.LogComplement, logProbTolerance, "log(1 − p) of target %d of sequence %d", j, i)
					}
				}
			})
		})
	}
}

func TestReferenceLogits(t *testing.T) {
	// an unrelated build of llama.cpp, whose GELU is a table of float16 values
	unrelated := map[string]float64{"silu": logitTolerance, "gelu": 5e-3}
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		d := newDecoder(t, m, DecoderOptions{Context: len(f.Logits.Tokens), Precision: F32})
		compare := func(what string, expected [][]float32, tolerance float64) {
			rows, err := d.Logits(context.Background(), f.Logits.Tokens, len(f.Logits.Tokens))
			require.NoError(t, err)
			require.Len(t, rows, len(f.Logits.Tokens))
			require.Len(t, expected, len(f.Logits.Positions))
			for i, at := range f.Logits.Positions {
				nearEach(t, expected[i], rows[at], tolerance, "%s logits at %d", what, at)
			}
		}
		compare("unsteered", f.Logits.Unsteered, logitTolerance)
		require.Contains(t, unrelated, f.Activation)
		compare("llama.cpp's", f.LlamaCpp.Unsteered, unrelated[f.Activation])
		require.NoError(t, d.Steer(Active{Steering: added(map[int][]float32{f.Logits.Layer: f.Logits.Vector}), Strength: 1}))
		compare("steered", f.Logits.Steered, logitTolerance)
	})
}

func TestReferenceContinuation(t *testing.T) {
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		c := f.Continuation
		d := newDecoder(t, m, DecoderOptions{Context: 64, Precision: F32})
		require.NoError(t, d.Steer(Active{Steering: added(map[int][]float32{c.Layer: c.Vector}), Strength: 1}))
		found, err := d.Generate(context.Background(), [][]Token{c.Prompt}, GenerateOptions{Tokens: len(c.Tokens)}, nil)
		require.NoError(t, err)
		require.Equal(t, c.Tokens, found[0].Tokens)
		require.Equal(t, StopLength, found[0].Stop)
	})
}

func TestReferenceStreamNorms(t *testing.T) {
	const tolerance = 1e-5 // of the norm: the stream is a sum of a few float32 vectors
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		tokens := f.ResidualNorms.Tokens
		norms, err := m.StreamNorms(context.Background(), [][]Token{tokens, tokens[:1]}, everyLayer(m))
		require.NoError(t, err)
		require.Len(t, norms, len(f.ResidualNorms.Norms))
		for l, expected := range f.ResidualNorms.Norms {
			require.Len(t, norms[l], 2)
			require.Len(t, norms[l][0], len(tokens))
			require.Len(t, norms[l][1], 1)
			for i := range expected {
				near(t, expected[i], norms[l][0][i], tolerance*expected[i], "layer %d, token %d", l, i)
			}
			near(t, expected[0], norms[l][1][0], tolerance*expected[0], "layer %d, text of one token", l)
		}
	})
}

func newDecoder(t testing.TB, m *Model, o DecoderOptions) *Decoder {
	t.Helper()
	d, err := m.NewDecoder(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return d
}
