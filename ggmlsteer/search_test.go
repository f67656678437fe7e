package ggmlsteer

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// probTolerance is what log probabilities that are logProbTolerance apart make of a probability.
const probTolerance = logProbTolerance

// afterEach are the probabilities of all tokens after a text, from logits of the whole text.
func afterEach(t *testing.T, d *Decoder, prompt, tokens []Token, coldness float64) []float64 {
	t.Helper()
	text := slices.Concat(prompt, tokens)
	rows := textLogits(t, d, text, len(prompt))
	probs := make([]float64, len(rows[0]))
	sum := 0.0
	for i, z := range rows[len(text)-1] {
		probs[i] = math.Exp(coldness * float64(z))
		sum += probs[i]
	}
	for i := range probs {
		probs[i] /= sum
	}
	return probs
}

// bruteForce is beam search by the words of the specification: every round computes
// every beam from its first token on, and sorts all that competes.
func bruteForce(t *testing.T, d *Decoder, s *search) []Completion {
	t.Helper()
	score := func(c Completion) float64 {
		if !s.Total {
			return c.Probs[len(c.Probs)-1]
		}
		product := 1.0
		for _, p := range c.Probs {
			product *= p
		}
		return product
	}
	beams := []Completion{{}}
	for range 1 + s.Further {
		var all []Completion
		for _, b := range beams {
			if n := len(b.Tokens); n > 0 && s.ends(b.Tokens[n-1]) {
				all = append(all, b)
				continue
			}
			probs := afterEach(t, d, s.prompts[0], b.Tokens, s.Coldness)
			if len(s.prompts) > 1 {
				for i, p := range afterEach(t, d, s.prompts[1], b.Tokens, s.Coldness) {
					probs[i] -= p
				}
			}
			for i, p := range probs {
				all = append(all, Completion{append(slices.Clone(b.Tokens), Token(i)), append(slices.Clone(b.Probs), p)})
			}
		}
		slices.SortStableFunc(all, func(a, b Completion) int {
			switch x, y := score(a), score(b); {
			case x == y:
				return 0
			case (x > y) != s.Reverse:
				return -1
			}
			return 1
		})
		beams = all[:min(len(all), s.Beams)]
	}
	return beams
}

func TestSearchAgainstBruteForce(t *testing.T) {
	some := func(token Token) bool { return token%5 == 0 } // of the tokens end a text
	none := func(Token) bool { return false }
	for _, c := range []struct {
		name     string
		options  SearchOptions
		contrast bool
		ends     func(Token) bool
	}{
		{"last", SearchOptions{Beams: 3, Further: 3, Coldness: 1}, false, none},
		{"total", SearchOptions{Beams: 4, Further: 3, Coldness: 1, Total: true}, false, none},
		{"cold", SearchOptions{Beams: 3, Further: 2, Coldness: 0.3, Total: true}, false, none},
		{"reverse", SearchOptions{Beams: 3, Further: 2, Coldness: 0.2, Reverse: true}, false, none},
		{"total_reverse", SearchOptions{Beams: 3, Further: 2, Coldness: 0.2, Total: true, Reverse: true}, false, none},
		{"ends", SearchOptions{Beams: 5, Further: 4, Coldness: 1}, false, some},
		{"total_ends", SearchOptions{Beams: 5, Further: 4, Coldness: 1, Total: true}, false, some},
		{"contrast", SearchOptions{Beams: 4, Further: 3, Coldness: 1}, true, none},
		{"contrast_total_ends", SearchOptions{Beams: 4, Further: 3, Coldness: 0.7, Total: true}, true, some},
		{"contrast_reverse", SearchOptions{Beams: 4, Further: 3, Coldness: 0.7, Reverse: true}, true, some},
		{"one_beam", SearchOptions{Beams: 1, Further: 5, Coldness: 1}, false, none},
		{"one_token", SearchOptions{Beams: 7, Coldness: 1}, false, none},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
				random := rand.New(rand.NewPCG(20, 20))
				active := everyKind(random, m)
				active[1].Steering.PromptOnly = true
				s := &search{SearchOptions: c.options, prompts: [][]Token{randomTokens(random, 9, f.Vocabulary)}, ends: c.ends}
				if c.contrast {
					s.prompts = append(s.prompts, randomTokens(random, 5, f.Vocabulary))
				}
				found, err := s.run(context.Background(), m, F32, active)
				require.NoError(t, err)
				d := newDecoder(t, m, DecoderOptions{Context: 32, Precision: F32})
				require.NoError(t, d.Steer(active...))
				requireCompletions(t, bruteForce(t, d, s), found)
			})
		})
	}
}

func requireCompletions(t *testing.T, expected, found []Completion) {
	t.Helper()
	require.Len(t, found, len(expected))
	for i := range expected {
		require.Equal(t, expected[i].Tokens, found[i].Tokens, "completion %d", i)
		require.Len(t, found[i].Probs, len(expected[i].Probs))
		for j, p := range expected[i].Probs {
			near(t, p, found[i].Probs[j], probTolerance, "completion %d, token %d", i, j)
		}
	}
}

// As many beams as there are texts find all of them, and their probabilities add to 1.
func TestSearchFindsEverything(t *testing.T) {
	m, f := openFixture(t, "qwen2")
	random := rand.New(rand.NewPCG(21, 21))
	found, err := m.Search(context.Background(), randomTokens(random, 4, f.Vocabulary), SearchOptions{Beams: maxSequences, Coldness: 1, Total: true}, F32)
	require.NoError(t, err)
	require.Len(t, found, min(f.Vocabulary, maxSequences))
	sum, seen := 0.0, map[Token]bool{}
	for _, c := range found {
		require.Len(t, c.Tokens, 1)
		sum += c.Probs[0]
		seen[c.Tokens[0]] = true
	}
	require.Len(t, seen, len(found))
	if f.Vocabulary <= maxSequences {
		near(t, 1, sum, 1e-9, "the sum of all probabilities")
	}
}

// A score stays what it is where its value would be 0.
func TestScoresDoNotVanish(t *testing.T) {
	small, smaller := score{1, -800}, score{1, -801}
	require.Zero(t, small.value())
	require.Positive(t, small.compare(smaller))
	require.Negative(t, score{-1, -800}.compare(score{-1, -801}))
	require.Positive(t, score{0, 0}.compare(score{-1, -801}))
	require.Negative(t, score{0, 0}.compare(smaller))
	require.Zero(t, score{0, 1}.compare(score{0, 2}))
	require.Equal(t, score{1, -1600}, score{-1, -800}.times(score{-1, -800}))
	near(t, 0.5, difference(math.Log(0.75), math.Log(0.25)).value(), 1e-15, "0.75 − 0.25")
	near(t, -0.5, difference(math.Log(0.25), math.Log(0.75)).value(), 1e-15, "0.25 − 0.75")
	require.Equal(t, 0.0, difference(-1, -1).value())
	require.Equal(t, 0, difference(math.Inf(-1), math.Inf(-1)).sign)
}

func TestSearchRefuses(t *testing.T) {
	m, f := openFixture(t, "llama")
	prompt := randomTokens(rand.New(rand.NewPCG(22, 22)), 4, f.Vocabulary)
	good := SearchOptions{Beams: 2, Further: 1, Coldness: 1}
	try := func(prompt []Token, change func(*SearchOptions), active ...Active) error {
		o := good
		change(&o)
		_, err := m.Search(context.Background(), prompt, o, F32, active...)
		return err
	}
	keep := func(*SearchOptions) {}
	require.NoError(t, try(prompt, keep))
	inputError(t, try(nil, keep), "no tokens")
	inputError(t, try(prompt, func(o *SearchOptions) { o.Contrast = []Token{} }), "no tokens")
	inputError(t, try(prompt, func(o *SearchOptions) { o.Beams = 0 }), "beams")
	inputError(t, try(prompt, func(o *SearchOptions) { o.Beams = 257 }), "beams")
	inputError(t, try(prompt, func(o *SearchOptions) { o.Beams, o.Contrast = 129, prompt }), "beams")
	inputError(t, try(prompt, func(o *SearchOptions) { o.Further = -1 }), "-1")
	inputError(t, try(prompt, func(o *SearchOptions) { o.Further = m.info.TrainContext }), "longer than")
	inputError(t, try([]Token{-1}, keep), "vocabulary")
	for _, coldness := range []float64{0, -1, math.NaN(), math.Inf(1)} {
		inputError(t, try(prompt, func(o *SearchOptions) { o.Coldness = coldness }), "coldness")
	}
	huge := added(map[int][]float32{1: slices.Repeat([]float32{math.MaxFloat32}, f.Width)})
	require.ErrorIs(t, try(prompt, keep, Active{Steering: huge, Strength: 10}), errNotANumber)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := m.Search(ctx, prompt, good, F32)
	require.ErrorIs(t, err, context.Canceled)
}
