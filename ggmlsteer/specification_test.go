package ggmlsteer

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"testing"

	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

// What PyTorch computed from the specification alone: see testdata/reference/SPECIFICATION.md.
type specification struct {
	Logprob []struct {
		Name, Model        string
		Prompt, Completion []Token
		Steerings          []specifiedSteering
		Values             []struct {
			Coldness   float64
			Complement bool
			PerToken   []float64 `json:"per_token"`
		}
	}
	Search []struct {
		Name, Model      string
		Prompt, Contrast []Token
		Beams, Iters     int
		Coldness         float64
		UseTotalProbs    bool `json:"use_total_probs"`
		Reverse          bool
		End              []Token
		Steerings        []specifiedSteering
		Completions      []struct {
			Tokens []Token
			Probs  []float64
		}
	}
	Activations []struct {
		Name, Model string
		Tokens      []Token
		Steerings   []specifiedSteering
		SteeredFrom int           `json:"steered_from"`
		Activations [][][]float32 // layers × tokens × width
	}
}

type specifiedSteering struct {
	Kind     string
	Clamp    float64
	Strength float64
	Parts    []struct {
		Layers      []int
		Vector      []float32
		Left, Right [][]float32
	}
}

func readSpecification(t *testing.T) *specification {
	data, err := os.ReadFile(referenceFolder + "specification.json")
	require.NoError(t, err)
	s := new(specification)
	require.NoError(t, json.Unmarshal(data, s))
	return s
}

func activeOf(steerings []specifiedSteering) (all []Active) {
	for _, s := range steerings {
		steering := &loader.Steering{Kind: loader.Kind(s.Kind), Clamp: s.Clamp}
		for _, p := range s.Parts {
			steering.Layers = append(steering.Layers, p.Layers...)
			steering.Shared = len(p.Layers) > 1
			steering.Params = append(steering.Params, loader.Parameters{Vector: p.Vector, Left: p.Left, Right: p.Right})
		}
		all = append(all, Active{Steering: steering, Strength: s.Strength})
	}
	return all
}

// Log-probabilities of completions under every kind of steering, with strengths.
func TestSpecifiedLogprobs(t *testing.T) {
	s := readSpecification(t)
	require.NotEmpty(t, s.Logprob)
	for _, e := range s.Logprob {
		t.Run(e.Name, func(t *testing.T) {
			m, _ := openFixture(t, e.Model)
			for _, v := range e.Values {
				probs, err := m.Logprobs(context.Background(), slices.Concat(e.Prompt, e.Completion), len(e.Prompt), v.Coldness, F32, activeOf(e.Steerings)...)
				require.NoError(t, err)
				require.Len(t, probs, len(v.PerToken))
				for i, expected := range v.PerToken {
					found := probs[i].Log
					if v.Complement {
						found = probs[i].LogComplement
					}
					near(t, expected, found, logProbTolerance, "token %d at coldness %v", i, v.Coldness)
				}
			}
		})
	}
}

// The stream as the blocks read it, under steerings.
func TestSpecifiedActivations(t *testing.T) {
	s := readSpecification(t)
	require.NotEmpty(t, s.Activations)
	for _, e := range s.Activations {
		t.Run(e.Name, func(t *testing.T) {
			m, _ := openFixture(t, e.Model)
			active := activeOf(e.Steerings)
			for i := range active {
				active[i].From = e.SteeredFrom
			}
			x, err := m.Activations(context.Background(), e.Tokens, everyLayer(m), active...)
			require.NoError(t, err)
			require.Len(t, x, len(e.Activations))
			for l := range x {
				require.Len(t, x[l], len(e.Tokens))
				for i := range x[l] {
					nearEach(t, e.Activations[l][i], x[l][i], streamTolerance, "layer %d, token %d", l, i)
				}
			}
		})
	}
}

// Beam search: the same completions in the same order, with their probabilities.
func TestSpecifiedSearches(t *testing.T) {
	s := readSpecification(t)
	require.NotEmpty(t, s.Search)
	for _, e := range s.Search {
		t.Run(e.Name, func(t *testing.T) {
			m, _ := openFixture(t, e.Model)
			search := &search{
				SearchOptions: SearchOptions{Beams: e.Beams, Further: e.Iters, Coldness: e.Coldness, Total: e.UseTotalProbs, Reverse: e.Reverse, Contrast: e.Contrast},
				prompts:       [][]Token{e.Prompt},
				ends:          func(token Token) bool { return slices.Contains(e.End, token) },
			}
			if e.Contrast != nil {
				search.prompts = append(search.prompts, e.Contrast)
			}
			found, err := search.run(context.Background(), m, F32, activeOf(e.Steerings))
			require.NoError(t, err)
			require.Len(t, found, len(e.Completions))
			for i, expected := range e.Completions {
				require.Equal(t, expected.Tokens, found[i].Tokens, "completion %d", i)
				for j, p := range expected.Probs {
					near(t, p, found[i].Probs[j], probTolerance, "completion %d, token %d", i, j)
				}
			}
		})
	}
}
