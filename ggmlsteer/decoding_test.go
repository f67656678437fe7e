package ggmlsteer

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

// textLength is far beyond the sliding windows of the models, 6 tokens.
const textLength = 24

// nextLogits decodes tokens in the first slot, one at a time, and returns the logits after each.
func nextLogits(t *testing.T, d *Decoder, tokens []Token) (rows [][]float32) {
	t.Helper()
	for _, token := range tokens {
		require.NoError(t, d.slots[0].Append(token))
		require.NoError(t, d.Decode(context.Background()))
		rows = append(rows, slotLogits(t, d.slots[0]))
	}
	return rows
}

// slotLogits are a copy.
func slotLogits(t *testing.T, s *Slot) []float32 {
	t.Helper()
	row, err := s.Logits()
	require.NoError(t, err)
	return slices.Clone(row)
}

func textLogits(t *testing.T, d *Decoder, tokens []Token, prompt int) [][]float32 {
	t.Helper()
	rows, err := d.Logits(context.Background(), tokens, prompt)
	require.NoError(t, err)
	require.Len(t, rows, len(tokens))
	return rows
}

func nearRows(t *testing.T, expected, found [][]float32, what string) {
	t.Helper()
	require.Len(t, found, len(expected))
	for i := range expected {
		nearEach(t, expected[i], found[i], logitTolerance, "%s, logits %d", what, i)
	}
}

// requireApart makes sure that a comparison means something.
func requireApart(t *testing.T, a, b [][]float32) {
	t.Helper()
	require.Greater(t, distance(slices.Concat(a...), slices.Concat(b...)), 1.0, "steering changed nothing")
}

// everyKind steers the first, the middle and the last layer, and each differently.
func everyKind(random *rand.Rand, m *Model) []Active {
	width, layers := m.info.Embd, m.info.Layers
	v := func() []float32 { return randomVector(random, width, 2) }
	rows := func() [][]float32 { return [][]float32{randomVector(random, width, 1), randomVector(random, width, 1)} }
	return []Active{
		{Steering: added(map[int][]float32{0: v(), layers - 1: v()}), Strength: 0.75},
		{Steering: &loader.Steering{Kind: loader.Affine, Layers: []int{layers / 2}, Params: []loader.Parameters{{Vector: v(), Left: rows(), Right: rows()}}}, Strength: 0.5},
		{Steering: &loader.Steering{Kind: loader.Ablate, Layers: []int{0, 1}, Shared: true, Params: []loader.Parameters{{Vector: v()}}}, Strength: 1},
		{Steering: &loader.Steering{Kind: loader.Clamp, Clamp: -1.5, Layers: []int{layers / 2}, Params: []loader.Parameters{{Vector: v()}}}, Strength: 1},
	}
}

// A text token by token, through the cache, gives what it gives in one piece.
func TestTokenByToken(t *testing.T) {
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		random := rand.New(rand.NewPCG(3, 3))
		tokens := randomTokens(random, textLength, f.Vocabulary)
		d := newDecoder(t, m, DecoderOptions{Context: textLength, Precision: F32})
		unsteered := textLogits(t, d, tokens, len(tokens))
		require.NoError(t, d.Steer(everyKind(random, m)...))
		whole := textLogits(t, d, tokens, len(tokens))
		requireApart(t, unsteered, whole)
		d.Clear()
		d.slots[0].prompt = len(tokens)
		nearRows(t, whole, nextLogits(t, d, tokens), "token by token")
	})
}

// The steering changes twice in a text, to a vector of the same layer, and ends: each
// token has its own, as in a session with a factor for each token.
func TestSteeringChangesAtOnce(t *testing.T) {
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		random := rand.New(rand.NewPCG(4, 4))
		tokens := randomTokens(random, textLength, f.Vocabulary)
		for _, layer := range []int{0, f.Layers / 2, f.Layers - 1} {
			v, w := randomVector(random, f.Width, 3), randomVector(random, f.Width, 3)
			of := func(x []float32) Active { return Active{Steering: added(map[int][]float32{layer: x}), Strength: 1} }
			phases := []struct {
				until  int
				active []Active
			}{{6, nil}, {11, []Active{of(v)}}, {16, []Active{of(w)}}, {20, []Active{{Steering: added(map[int][]float32{layer: w}), Strength: -2}}}, {textLength, nil}}
			d := newDecoder(t, m, DecoderOptions{Context: textLength, Precision: F32})
			var found [][]float32
			factors := [][]float32{make([]float32, textLength), make([]float32, textLength)}
			for i, phase := range phases {
				require.NoError(t, d.Steer(phase.active...))
				from := len(found)
				found = append(found, nextLogits(t, d, tokens[from:phase.until])...)
				for at := from; at < phase.until; at++ {
					factors[0][at] = []float32{0, 1, 0, 0, 0}[i]
					factors[1][at] = []float32{0, 0, 1, -2, 0}[i]
				}
			}
			s, err := m.NewSession(SessionOptions{Layers: []int{layer}, Vectors: 2, Coldness: 1}, []Sequence{{Tokens: tokens, Prompt: 1, Vector: factors}})
			require.NoError(t, err)
			defer s.Close()
			probs, err := s.Forward(context.Background(), []Operation{{Vectors: [][]float32{v, w}}})
			require.NoError(t, err)
			for i, p := range probs[0] {
				near(t, p.Log, probOf(found[i], tokens[i+1], 1).Log, logProbTolerance, "layer %d, log p of token %d", layer, i+1)
			}
			// cleared, the decoder is as it was
			fresh := newDecoder(t, m, DecoderOptions{Context: textLength, Precision: F32})
			require.Equal(t, textLogits(t, fresh, tokens, 0), textLogits(t, d, tokens, 0))
		}
	})
}

func TestSteeringIdentities(t *testing.T) {
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		random := rand.New(rand.NewPCG(5, 5))
		tokens := randomTokens(random, textLength, f.Vocabulary)
		middle := f.Layers / 2
		v, w := randomVector(random, f.Width, 2), randomVector(random, f.Width, 2)
		scaled := func(v []float32, by float32) []float32 {
			v = slices.Clone(v)
			for i := range v {
				v[i] *= by
			}
			return v
		}
		d := newDecoder(t, m, DecoderOptions{Context: textLength, Precision: F32})
		logits := func(active ...Active) [][]float32 {
			require.NoError(t, d.Steer(active...))
			return textLogits(t, d, tokens, 4)
		}
		unsteered := logits()
		all := map[int][]float32{}
		for l := range f.Layers {
			all[l] = v
		}
		add := added(all)
		requireApart(t, unsteered, logits(Active{Steering: add, Strength: 1}))
		require.Equal(t, unsteered, logits(Active{Steering: add, Strength: 0}), "strength 0")
		require.Equal(t, unsteered, logits(), "no steering")
		kinds := everyKind(random, m)
		for i := range kinds {
			kinds[i].Strength = 0
		}
		require.Equal(t, unsteered, logits(kinds...), "every kind, strength 0")
		zero := slices.Clone(v)
		clear(zero)
		require.Equal(t, unsteered, logits(Active{Steering: &loader.Steering{Kind: loader.Ablate, Layers: []int{middle}, Params: []loader.Parameters{{Vector: zero}}}, Strength: 1}), "ablate a zero vector")

		at := func(kind loader.Kind, c float64, v []float32) *loader.Steering {
			return &loader.Steering{Kind: kind, Clamp: c, Layers: []int{middle}, Params: []loader.Parameters{{Vector: v}}}
		}
		for _, pair := range []struct {
			name string
			a, b []Active
		}{
			{"v and −v", nil, []Active{{Steering: add, Strength: 1}, {Steering: add, Strength: -1}}},
			{"v and its negative", nil, []Active{{Steering: at(loader.Add, 0, v), Strength: 2}, {Steering: at(loader.Add, 0, scaled(v, -2)), Strength: 1}}},
			{"strength 2 is twice the vector", []Active{{Steering: at(loader.Add, 0, v), Strength: 2}}, []Active{{Steering: at(loader.Add, 0, scaled(v, 2)), Strength: 1}}},
			{"strengths add", []Active{{Steering: at(loader.Add, 0, v), Strength: -1.5}}, []Active{{Steering: at(loader.Add, 0, v), Strength: 0.5}, {Steering: at(loader.Add, 0, v), Strength: -2}}},
			{"vectors commute", []Active{{Steering: at(loader.Add, 0, v), Strength: 1}, {Steering: at(loader.Add, 0, w), Strength: 2}}, []Active{{Steering: at(loader.Add, 0, w), Strength: 2}, {Steering: at(loader.Add, 0, v), Strength: 1}}},
			{"ablate looks at directions", []Active{{Steering: at(loader.Ablate, 0, v), Strength: 1}}, []Active{{Steering: at(loader.Ablate, 0, scaled(v, -3)), Strength: 1}}},
			{"half an ablation twice", []Active{{Steering: at(loader.Ablate, 0, v), Strength: 1}}, []Active{{Steering: at(loader.Ablate, 0, v), Strength: 0.5}, {Steering: at(loader.Ablate, 0, v), Strength: 0.5}}},
			{"clamp at 0 is ablate", []Active{{Steering: at(loader.Ablate, 0, v), Strength: 1}}, []Active{{Steering: at(loader.Clamp, 0, v), Strength: 1}}},
			{"clamp is ablate and add", []Active{{Steering: at(loader.Clamp, 1.5, v), Strength: 1}}, []Active{{Steering: at(loader.Ablate, 0, v), Strength: 1}, {Steering: at(loader.Add, 0, v), Strength: 1.5}}},
		} {
			nearRows(t, logits(pair.a...), logits(pair.b...), pair.name)
		}
		requireApart(t, logits(Active{Steering: at(loader.Ablate, 0, v), Strength: 1}), logits(Active{Steering: at(loader.Clamp, 1.5, v), Strength: 1}))
	})
}

// Ablation at layer 0 takes the vector out of the embedding: one that has
// nothing along it stays as it is, one that is it becomes 0.
func TestAblationRemovesTheDirection(t *testing.T) {
	m, f := openFixture(t, "llama")
	x, err := m.Activations(context.Background(), []Token{7, 8}, []int{0})
	require.NoError(t, err)
	embedding, other := x[0][0], x[0][1]
	d := newDecoder(t, m, DecoderOptions{Context: 4, Precision: F32})
	after := func(token Token, active ...Active) []float32 {
		require.NoError(t, d.Steer(active...))
		return textLogits(t, d, []Token{token}, 1)[0]
	}
	minus := slices.Clone(embedding)
	for i := range minus {
		minus[i] = -minus[i]
	}
	ablate := func(v []float32) Active {
		return Active{Steering: &loader.Steering{Kind: loader.Ablate, Layers: []int{0}, Params: []loader.Parameters{{Vector: v}}}, Strength: 1}
	}
	// where x becomes 0, rounding is all that a norm sees: put the other embedding there
	expected := after(8)
	found := after(7, ablate(embedding), Active{Steering: added(map[int][]float32{0: other}), Strength: 1})
	nearEach(t, expected, found, logitTolerance, "the embedding is removed")
	nearEach(t, expected, after(7, Active{Steering: added(map[int][]float32{0: minus}), Strength: 1}, Active{Steering: added(map[int][]float32{0: other}), Strength: 1}), logitTolerance, "the embedding is subtracted")

	along := 0.0
	for i := range embedding {
		along += float64(embedding[i]) * float64(other[i])
	}
	square := distance(embedding, make([]float32, f.Width))
	orthogonal := slices.Clone(other)
	for i := range orthogonal {
		orthogonal[i] -= float32(along / (square * square) * float64(embedding[i]))
	}
	nearEach(t, after(7), after(7, ablate(orthogonal)), logitTolerance, "nothing lies along an orthogonal vector")
}

// Several sequences in one batch, of different lengths, give what each gives alone.
func TestSequencesSideBySide(t *testing.T) {
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		random := rand.New(rand.NewPCG(6, 6))
		prompts := [][]Token{randomTokens(random, 9, f.Vocabulary), randomTokens(random, 3, f.Vocabulary), randomTokens(random, 14, f.Vocabulary)}
		active := everyKind(random, m)
		active[1].Steering.PromptOnly = true
		o := GenerateOptions{Tokens: 8}
		var alone [][]Token
		var logits [][]float32
		for _, p := range prompts {
			d := newDecoder(t, m, DecoderOptions{Context: 32, Precision: F32})
			require.NoError(t, d.Steer(active...))
			c, err := d.Generate(context.Background(), [][]Token{p}, o, nil)
			require.NoError(t, err)
			alone = append(alone, c[0].Tokens)
			logits = append(logits, textLogits(t, d, append(slices.Clone(p), c[0].Tokens...), len(p))[len(p)-1:]...)
		}
		d := newDecoder(t, m, DecoderOptions{Context: 32, Sequences: 3, Precision: F32})
		require.NoError(t, d.Steer(active...))
		together, err := d.Generate(context.Background(), prompts, o, nil)
		require.NoError(t, err)
		for i, c := range together {
			require.Equal(t, alone[i], c.Tokens, "prompt %d", i)
			require.Len(t, c.Tokens, o.Tokens)
		}

		// and the logits, decoded in one batch of prompts and then one of a token each
		d.Clear()
		for i, p := range prompts {
			_, err := d.Slot(i).Set(p, len(p))
			require.NoError(t, err)
		}
		for n := range o.Tokens + 1 {
			require.NoError(t, d.Decode(context.Background()))
			for i := range prompts {
				nearEach(t, logits[i*(o.Tokens+1)+n], slotLogits(t, d.Slot(i)), logitTolerance, "prompt %d, after %d tokens", i, n)
				if n < o.Tokens {
					require.NoError(t, d.Slot(i).Append(alone[i][n]))
				}
			}
		}
	})
}

// Sequences in one session give what each gives alone, prefixes shared or not.
func TestSessionSequencesSideBySide(t *testing.T) {
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		random := rand.New(rand.NewPCG(7, 7))
		common := randomTokens(random, 8, f.Vocabulary)
		longer := slices.Concat(common, randomTokens(random, 7, f.Vocabulary))
		plain := func(tokens []Token, prompt int) Sequence {
			return Sequence{Tokens: tokens, Prompt: prompt, Vector: [][]float32{ones(len(tokens))}}
		}
		negative := plain(longer, 10)
		negative.Vector = [][]float32{slices.Repeat([]float32{-1}, len(longer))}
		late := plain(longer, 9)
		late.Vector = [][]float32{append(make([]float32, 5), ones(len(longer)-5)...)}
		sequences := []Sequence{
			plain(longer, 8), plain(slices.Concat(common, randomTokens(random, 3, f.Vocabulary)), 8), plain(common, 2),
			negative, late, plain(randomTokens(random, 2, f.Vocabulary), 1), plain(longer, 8),
		}
		layers := []int{0, f.Layers / 2}
		ops := []Operation{{Vectors: [][]float32{randomVector(random, f.Width, 2)}}, {Vectors: [][]float32{randomVector(random, f.Width, 2)}}}
		o := SessionOptions{Layers: layers, Vectors: 1, Coldness: 1}
		requireSumOfParts(t, m, o, ops, sequences)
		s, err := m.NewSession(o, sequences)
		require.NoError(t, err)
		defer s.Close()
		// of 15 tokens all but the last, two that only the second text has, the texts whose
		// factors differ from the first on, and one token of a prompt
		require.Equal(t, 14+2+14+14+1, s.BatchTokens(), "tokens computed")
	})
}

// More sequences than one graph takes, 256: the session computes two, one after the
// other, and gives what three smaller sessions give; again, too, in any order of calls.
func TestSessionOfSeveralGraphs(t *testing.T) {
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		const count, share = 300, 100
		random := rand.New(rand.NewPCG(16, 16))
		ops := []Operation{{Vectors: [][]float32{randomVector(random, f.Width, 2)}}}
		other := []Operation{{Vectors: [][]float32{randomVector(random, f.Width, 2)}}}
		var sequences []Sequence
		var weights [][]float64
		for i := range count {
			tokens := randomTokens(random, 2+i%4, f.Vocabulary)
			sequences = append(sequences, Sequence{Tokens: tokens, Prompt: 1, Vector: [][]float32{ones(len(tokens))}})
			weights = append(weights, slices.Repeat([]float64{random.NormFloat64()}, len(tokens)-1))
		}
		newSession := func(sequences []Sequence) *Session {
			s, err := m.NewSession(SessionOptions{Layers: []int{1}, Vectors: 1, Coldness: 1}, sequences)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, s.Close()) })
			return s
		}
		forward := func(s *Session, ops []Operation) [][]Prob {
			probs, err := s.Forward(context.Background(), ops)
			require.NoError(t, err)
			return probs
		}
		backward := func(s *Session, weights [][]float64) []Operation {
			gradient, err := s.Backward(context.Background(), weights)
			require.NoError(t, err)
			return gradient
		}
		together := newSession(sequences)
		probs := forward(together, ops)
		gradient := backward(together, weights)
		require.Equal(t, gradient, backward(together, weights), "the gradient again")
		forward(together, other)
		require.Equal(t, probs, forward(together, ops), "back at the point")
		forward(together, other)
		forward(together, ops)
		require.Equal(t, gradient, backward(together, weights), "back at the point")

		sum := each(gradient, gradient, func(a, _ []float32) []float32 { return make([]float32, len(a)) })
		for from := 0; from < count; from += share {
			part := newSession(sequences[from : from+share])
			for i, expected := range forward(part, ops) {
				require.Len(t, probs[from+i], len(expected))
				for j := range expected {
					near(t, expected[j].Log, probs[from+i][j].Log, logProbTolerance, "sequence %d, target %d", from+i, j)
				}
			}
			sum = moved(sum, backward(part, weights[from:from+share]), 1)
		}
		nearVector(t, slices.Concat(rowsOf(sum)...), slices.Concat(rowsOf(gradient)...), gradientTolerance, "gradient")
	})
}

// With PromptOnly what is generated is not steered itself, though it attends to a prompt that is.
func TestPromptOnly(t *testing.T) {
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		random := rand.New(rand.NewPCG(8, 8))
		prompt := randomTokens(random, 6, f.Vocabulary)
		layer, v := f.Layers/2, randomVector(random, f.Width, 4)
		always, only := added(map[int][]float32{layer: v}), added(map[int][]float32{layer: v})
		only.PromptOnly = true
		d := newDecoder(t, m, DecoderOptions{Context: 32, Precision: F32})
		require.NoError(t, d.Steer(Active{Steering: only, Strength: 1}))
		c, err := d.Generate(context.Background(), [][]Token{prompt}, GenerateOptions{Tokens: 12}, nil)
		require.NoError(t, err)
		tokens := slices.Concat(prompt, c[0].Tokens)
		rows := textLogits(t, d, tokens, len(prompt))

		factors := append(ones(len(prompt)), make([]float32, len(c[0].Tokens))...)
		s, err := m.NewSession(SessionOptions{Layers: []int{layer}, Vectors: 1, Coldness: 1}, []Sequence{{Tokens: tokens, Prompt: 1, Vector: [][]float32{factors}}})
		require.NoError(t, err)
		defer s.Close()
		probs, err := s.Forward(context.Background(), []Operation{{Vectors: [][]float32{v}}})
		require.NoError(t, err)
		for i, p := range probs[0] {
			near(t, p.Log, probOf(rows[i], tokens[i+1], 1).Log, logProbTolerance, "log p of token %d", i+1)
			if i+1 >= len(prompt) {
				require.Equal(t, slices.Max(rows[i]), rows[i][tokens[i+1]], "token %d is not the likeliest", i+1)
			}
		}
		require.NoError(t, d.Steer(Active{Steering: always, Strength: 1}))
		everywhere := textLogits(t, d, tokens, len(prompt))
		nearRows(t, rows[:len(prompt)], everywhere[:len(prompt)], "the prompt")
		requireApart(t, rows[len(prompt):], everywhere[len(prompt):])
	})
}

func TestSampling(t *testing.T) {
	m, f := openFixture(t, "gemma2")
	random := rand.New(rand.NewPCG(9, 9))
	prompts := [][]Token{randomTokens(random, 6, f.Vocabulary), randomTokens(random, 3, f.Vocabulary)}
	d := newDecoder(t, m, DecoderOptions{Context: 40, Sequences: 2})
	generate := func(o GenerateOptions) [][]Token {
		o.Tokens = 20
		c, err := d.Generate(context.Background(), prompts, o, nil)
		require.NoError(t, err)
		return [][]Token{c[0].Tokens, c[1].Tokens}
	}
	plain := GenerateOptions{Sampling: Sampling{Temperature: 1, TopP: 1, RepeatPenalty: 1, Seed: 1}}
	other := plain
	other.Seed = 2
	require.Equal(t, generate(plain), generate(plain))
	require.NotEqual(t, generate(plain), generate(other))
	first := plain
	first.TopK = 1
	require.Equal(t, generate(GenerateOptions{}), generate(first))
	for name, change := range map[string]func(*Sampling){
		"top-p": func(s *Sampling) { s.TopP = 1e-6 },
		"min-p": func(s *Sampling) { s.MinP = 1 },
	} {
		likeliest := plain
		change(&likeliest.Sampling)
		require.Equal(t, generate(GenerateOptions{}), generate(likeliest), name)
	}
	cold := plain
	cold.Temperature = 1e-4
	require.Equal(t, generate(GenerateOptions{}), generate(cold))
}

// The repeat penalty is for what was drawn and for the prompt.
func TestRepeatPenalty(t *testing.T) {
	m, f := openFixture(t, "gemma2")
	prompt := randomTokens(rand.New(rand.NewPCG(9, 9)), 6, f.Vocabulary)
	d := newDecoder(t, m, DecoderOptions{Context: 40})
	_, err := d.Slot(0).Set(prompt, len(prompt))
	require.NoError(t, err)
	require.NoError(t, d.Decode(context.Background()))
	draw := func(s *Sampler) Token {
		token, err := d.Slot(0).Next(s)
		require.NoError(t, err)
		return token
	}
	likeliest := draw(nil)
	sampler := func(penalty float64, prompt ...Token) *Sampler {
		s := NewSampler(Sampling{Temperature: 1e-4, TopP: 1, RepeatPenalty: penalty}, prompt)
		t.Cleanup(func() { require.NoError(t, s.Close()) })
		return s
	}
	none := sampler(1, likeliest)
	require.Equal(t, likeliest, draw(none))
	require.Equal(t, likeliest, draw(none), "without a penalty")
	penalized := sampler(100)
	require.Equal(t, likeliest, draw(penalized))
	require.NotEqual(t, likeliest, draw(penalized), "it was drawn")
	require.NotEqual(t, likeliest, draw(sampler(100, likeliest)), "it is in the prompt")
}
