package ggmlsteer

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Models on a device. csrc/mock is one that is not there: its memory cannot be touched from
// outside, and it computes with the CPU's kernels. On a machine with a GPU these tests
// run on that: see scripts/cuda-check.sh.

// of all models that a test opens
const testGPULayers = "LLSTEER_TEST_GPU_LAYERS"

func testOptions() Options {
	layers, _ := strconv.Atoi(os.Getenv(testGPULayers))
	return Options{GPULayers: layers}
}

const (
	mockModule = "../build/libggml-mock.so"
	cudaModule = "../bin/libggml-cuda.so"
)

// inAProcess runs tests of this package in another process, since backends are loaded once in each.
func inAProcess(t *testing.T, tests string, env ...string) string {
	t.Helper()
	command := exec.CommandContext(t.Context(), os.Args[0], "-test.v", "-test.run", tests)
	command.Env = append(os.Environ(), env...)
	out, err := command.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "--- PASS", "no test ran")
	require.NotContains(t, string(out), "--- SKIP")
	return string(out)
}

func mockDevice(t *testing.T) string {
	t.Helper()
	require.FileExists(t, mockModule, "`make test` builds it")
	return absolute(t, mockModule)
}

// cudaBackend skips tests of what takes long to build; `make test` says so.
func cudaBackend(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat(cudaModule); err != nil {
		t.Skipf("%s is not there: `make cuda` builds it", cudaModule)
	}
	return absolute(t, cudaModule)
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	require.NoError(t, err)
	return path
}

func TestMockDevice(t *testing.T) {
	mock := mockDevice(t)
	inAProcess(t, "^(TestReference.*|TestComplementGradientNearOne|TestSpecifiedActivations|TestOnDevice|TestLittleMemory)$", "GGML_BACKEND_PATH="+mock, testGPULayers+"=-1")
	inAProcess(t, "^(TestReferenceCases|TestReferenceCasesDecoded|TestSpecifiedActivations|TestOnDevice)$", "GGML_BACKEND_PATH="+mock, testGPULayers+"=2")
	inAProcess(t, "^TestGraphsHaveTheSameBits$/^gemma2$", "GGML_BACKEND_PATH="+mock, testGPULayers+"=-1")
}

// TestCUDARefusesNothing has the mock device refuse what ggml's CUDA backend would.
func TestCUDARefusesNothing(t *testing.T) {
	mock, cuda := mockDevice(t), cudaBackend(t)
	inAProcess(t, "^(TestReferenceCases|TestOnDevice)$", "GGML_BACKEND_PATH="+mock, mockAs+"="+cuda, testGPULayers+"=-1")
}

const mockAs = "LLSTEER_MOCK_AS"

// What is left to the CPU of the graphs of llama.cpp's architectures, forward and backward, with all
// blocks on a GPU. CUDA's backend refuses nothing; these have weights that llama.cpp keeps on the CPU.
var leftByArchitecture = map[string][]string{
	"bloom":  {"ADD", "MUL", "NORM", "OUT_PROD"}, // a norm of the embedding
	"bitnet": {"MUL_MAT", "OUT_PROD", "SOFTMAX"}, // the embedding is the head, too
}

func TestArchitecturesOnCUDA(t *testing.T) {
	mock, cuda := mockDevice(t), cudaBackend(t)
	for _, name := range llamaCppArchitectures(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			left := tryInAProcess(t, name, "GGML_BACKEND_PATH="+mock, mockAs+"="+cuda, testGPULayers+"=-1").Left
			require.ElementsMatch(t, leftByArchitecture[name], left)
		})
	}
}

// leftToCPU lists the operations that a session computes on the CPU, but for the embedding's rows.
func leftToCPU(m *Model, layers []int) ([]string, error) {
	s, err := m.NewSession(SessionOptions{Layers: layers, Vectors: 1, Coldness: 1}, trialSequences(m))
	if err != nil {
		return nil, err
	}
	defer s.Close()
	left := map[string]bool{}
	for _, node := range s.Nodes() {
		device, what, _ := strings.Cut(node, " ")
		if op, _, _ := strings.Cut(what, " "); device == "CPU" && op != "GET_ROWS" {
			left[op] = true
		}
	}
	return slices.Sorted(maps.Keys(left)), nil
}

// TestCUDAWithoutGPU loads the CUDA backend on a machine without a GPU or its driver.
func TestCUDAWithoutGPU(t *testing.T) {
	cudaBackend(t)
	if _, err := os.Stat("/proc/driver/nvidia"); err == nil {
		t.Skip("there is an NVIDIA driver")
	}
	out := inAProcess(t, "^TestOnCPUInstead$", testGPULayers+"=-1", expectedReason+"=found no GPU")
	require.Contains(t, out, "failed to initialize CUDA", "the module was loaded, and says what it lacks")
}

// TestWithoutModule asks for a GPU where there is no module for one that can be loaded.
func TestWithoutModule(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "libggml-broken.so")
	require.NoError(t, os.WriteFile(broken, []byte("no library"), 0o644))
	inAProcess(t, "^TestOnCPUInstead$", "GGML_BACKEND_PATH="+broken, testGPULayers+"=-1", expectedReason+"=libggml-broken.so")
}

const expectedReason = "LLSTEER_TEST_NO_GPU"

func TestOnCPUInstead(t *testing.T) {
	reason := os.Getenv(expectedReason)
	if reason == "" {
		t.Skip(expectedReason + " is not set")
	}
	m, f := openFixture(t, fixtureNames[0])
	require.Zero(t, m.Info().GPULayers)
	require.Contains(t, m.Info().NoGPU, reason)
	s, ops := f.Cases[0].session(t, m, f)
	_, err := s.Forward(t.Context(), ops)
	require.NoError(t, err)
	for _, node := range s.Nodes() {
		require.True(t, strings.HasPrefix(node, "CPU "), node)
	}
}

// TestOnDevice compares a device with the CPU, and looks what it leaves to it.
func TestOnDevice(t *testing.T) {
	if testOptions().GPULayers == 0 {
		t.Skip(testGPULayers + " is not set")
	}
	for _, name := range fixtureNames {
		t.Run(name, func(t *testing.T) {
			m, f := openFixture(t, name)
			require.Empty(t, m.Info().NoGPU)
			layers := testOptions().GPULayers
			if layers < 0 {
				layers = m.Info().Layers
			}
			require.Equal(t, layers, m.Info().GPULayers)
			onCPU, err := open(m.Info().Path, Options{})
			require.NoError(t, err)
			defer onCPU.Close()
			require.Zero(t, onCPU.Info().GPULayers)

			for _, c := range f.Cases {
				s, ops := c.session(t, m, f)
				cpu, _ := c.session(t, onCPU, f)
				var probs [2][][]Prob
				var gradients [2][]Operation
				for i, s := range []*Session{cpu, s} {
					var err error
					probs[i], err = s.Forward(context.Background(), ops)
					require.NoError(t, err)
					if len(ops) > 0 {
						_, _, slopes := c.evaluate(f, probs[0])
						gradients[i], err = s.Backward(context.Background(), slopes)
						require.NoError(t, err)
					}
				}
				requireSameOnDevice(t, probs, gradients)

				left := map[string]bool{}
				for _, node := range s.Nodes() {
					device, what, _ := strings.Cut(node, " ")
					op, _, _ := strings.Cut(what, " ")
					if device == "CPU" {
						left[op] = true
					}
				}
				if m.Info().GPULayers == m.Info().Layers {
					require.Subset(t, []string{"GET_ROWS"}, slices.Collect(maps.Keys(left)), "only the rows of the embedding are the CPU's")
				}
			}
		})
	}
}

// The mock device has the CPU's kernels, and so its bits. A real one adds up in another order.
func requireSameOnDevice(t *testing.T, probs [2][][]Prob, gradients [2][]Operation) {
	t.Helper()
	if os.Getenv("GGML_BACKEND_PATH") != "" {
		require.Equal(t, probs[0], probs[1])
		require.Equal(t, gradients[0], gradients[1])
		return
	}
	for i := range probs[0] {
		for j, p := range probs[0][i] {
			near(t, p.Log, probs[1][i][j].Log, logProbTolerance, "log p of target %d of sequence %d", j, i)
		}
	}
	for i, rows := range rowsOf(gradients[0]) {
		nearVector(t, rows, rowsOf(gradients[1])[i], 1e-3, "row %d of the gradient", i)
	}
}
