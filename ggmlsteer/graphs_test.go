package ggmlsteer

import (
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// A session's graphs as CUDA graphs: csrc/cuda/graphs.cuh.
const cudaGraphs = "LLSTEER_CUDA_GRAPHS"

// TestCUDAGraphs needs a GPU: scripts/cuda-check.sh runs it.
func TestCUDAGraphs(t *testing.T) {
	if testOptions().GPULayers == 0 || os.Getenv("GGML_BACKEND_PATH") != "" {
		t.Skip("no GPU is asked for")
	}
	out := inAProcess(t, "^TestGraphsHaveTheSameBits$")
	// what each session says at its end that had them on
	said := regexp.MustCompile(`CUDA graphs: (\d+) captured, launched (\d+) times.*failures: (\d+)`).FindAllStringSubmatch(out, -1)
	require.Len(t, said, graphTrials*len(fixtureNames), out)
	least := 2 // the blocks, forward and backward
	if testOptions().GPULayers < 0 {
		least = 4 // and the head
	}
	for _, s := range said {
		t.Log(s[0])
		captured, launched := number(t, s[1]), number(t, s[2])
		require.GreaterOrEqual(t, captured, least, s[0])
		require.GreaterOrEqual(t, launched, 2*captured, s[0])
		require.Equal(t, "0", s[3], s[0])
	}
}

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	require.NoError(t, err)
	return n
}

const graphTrials = 4

// TestGraphsHaveTheSameBits takes steps with CUDA graphs and without. Twice without, which tells whether
// anything else is to blame. The mock device has no such graphs: there it tests itself.
func TestGraphsHaveTheSameBits(t *testing.T) {
	if testOptions().GPULayers == 0 {
		t.Skip(testGPULayers + " is not set")
	}
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		require.Empty(t, m.Info().NoGPU)
		random := rand.New(rand.NewPCG(19, 19))
		both := []Sequence{randomSequence(random, m, 40, 30, 1), randomSequence(random, m, 50, 20, 1)}
		trials := []struct {
			name      string
			options   SessionOptions
			sequences []Sequence
		}{
			{"f32", SessionOptions{Layers: []int{0}, Precision: F32}, both},
			{"bf16", SessionOptions{Layers: []int{1, f.Layers - 1}, Precision: BF16}, both},
			{"two graphs that take the memory from each other", SessionOptions{Layers: []int{1}, Precision: BF16, Memory: 1}, both},
			{"one that is computed twice", SessionOptions{Layers: []int{1}, Precision: F32, Memory: 1}, both[:1]},
		}
		require.Len(t, trials, graphTrials)
		for _, trial := range trials {
			t.Run(trial.name, func(t *testing.T) {
				o, sequences := trial.options, trial.sequences
				o.Vectors, o.Rank, o.Coldness = 1, 1, 1
				first := make([]Operation, len(o.Layers))
				for j := range first {
					row := func() [][]float32 { return [][]float32{randomVector(random, f.Width, 1)} }
					first[j] = Operation{Vectors: row(), Left: row(), Right: row()}
				}
				without := steps(t, m, o, first, sequences, "0")
				require.Equal(t, without, steps(t, m, o, first, sequences, "0"), "without CUDA graphs, again")
				require.Equal(t, without, steps(t, m, o, first, sequences, "1"), "with CUDA graphs")
			})
		}
	})
}

// steps is what some steps along the gradient find, as text: bits, since NaN is not equal to itself.
func steps(t *testing.T, m *Model, o SessionOptions, ops []Operation, sequences []Sequence, graphs string) []string {
	t.Helper()
	t.Setenv(cudaGraphs, graphs)
	s, err := m.NewSession(o, sequences)
	require.NoError(t, err)
	defer s.Close()
	var found []string
	for range 6 {
		probs, err := s.Forward(t.Context(), ops)
		require.NoError(t, err)
		weights := make([][]float64, len(probs))
		for i := range probs {
			for j := range probs[i] {
				weights[i] = append(weights[i], 1+0.5*float64(j%5))
			}
		}
		gradient, err := s.Backward(t.Context(), weights)
		require.NoError(t, err)
		require.NotContains(t, fmt.Sprint(probs, gradient), "NaN")
		found = append(found, fmt.Sprint(probs, gradient))
		ops = moved(ops, gradient, 1e-3)
	}
	require.NotEqual(t, found[0], found[1], "a step changes something")
	return found
}
