package models

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/testdata/demo"
	"github.com/stretchr/testify/require"
)

// These tests compare llsteer with a llama-server that it shares nothing with but the model file: another
// version of llama.cpp, built by somebody else, with the exported control vector. scripts/fetch-server.sh
// fetches it.

// What the two may differ in. Both round activations to 8 bits, each with its own kernels, and keep the
// cache in 16 bits; the log-probabilities compared with are llsteer's exact ones, which do neither. Measured on the
// texts below: root mean square differences of 0.016 nats (demo), 0.096 (Gemma 3) and 0.067 (SmolLM2), the largest
// single one 0.29; texts parted where the two best tokens were 0.006 to 0.30 nats apart. The limits are twice that; a
// difference of two differences is what decides a tie.
const (
	meanTolerance = 0.2 // root mean square of the differences of log-probabilities, nats
	mostTolerance = 0.6 // the largest one
	tieTolerance  = 0.6 // greedy texts part only where the two best tokens are so near
)

// subject is a model with a steering that was found on it.
type subject struct {
	name, path string
	steering   string // the file
	strength   string
	vector     string // the exported control vector, at that strength
	prompts    []string
}

// subjects are the demo model and both public ones, or those of these names.
func subjects(t *testing.T, names ...string) (chosen []subject) {
	dir := t.TempDir()
	demoPath := filepath.Join(dir, "demo.gguf")
	require.NoError(t, os.WriteFile(demoPath, demo.Model, 0o600))
	job := filepath.Join(dir, "demo.yaml")
	require.NoError(t, os.WriteFile(job, demo.Job, 0o600))
	all := []subject{
		{name: "demo", path: demoPath, strength: "0.9", prompts: []string{"To change the size of the window,", "The army marched through the forest until"}},
		{name: "gemma3-270m", path: model(t, "gemma3-270m.gguf"), strength: "0.5", prompts: []string{"My favorite sports are", "The weather today is"}},
		{name: "smollm2-135m", path: model(t, "smollm2-135m.gguf"), strength: "1", prompts: []string{"My favorite sports are", "For dinner tonight I want to cook"}},
	}
	jobs := map[string][]string{
		"demo":        {job},
		"gemma3-270m": {"recipe.yaml"},
		// the vector is to do something, not to be good
		"smollm2-135m": {"recipe.yaml", "--layer", "12", "--target-loss", "none", "--max-iters", "30"},
	}
	for _, s := range all {
		if len(names) > 0 && !slices.Contains(names, s.name) {
			continue
		}
		s.steering, s.vector = filepath.Join(dir, s.name+"-steering.gguf"), filepath.Join(dir, s.name+"-cvec.gguf")
		llsteer[report](t, append(append([]string{"optimize", "-m", s.path}, jobs[s.name]...), "-o", s.steering)...)
		s.export(t, s.vector, s.steering+":"+s.strength)
		chosen = append(chosen, s)
	}
	return chosen
}

func (s *subject) export(t *testing.T, out string, from ...string) {
	llsteer[struct{}](t, append(append([]string{"export"}, from...), "-o", out)...)
}

// server starts llama-server on a free port of this machine, and returns its
// address; it is killed when the test ends.
func server(t *testing.T, path string, args ...string) string {
	address, _ := serverIn(t, ".", path, args...)
	return address
}

// serverIn starts one in a folder, and can be stopped earlier.
func serverIn(t *testing.T, dir, path string, args ...string) (address string, stop func()) {
	folder := os.Getenv("LLSTEER_SERVER")
	require.NotEmpty(t, folder, "LLSTEER_SERVER is not set: run make test-models")
	for range 3 { // somebody else may take the port before the server does
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		address := listener.Addr().String()
		require.NoError(t, listener.Close())
		_, port, err := net.SplitHostPort(address)
		require.NoError(t, err)
		cmd := exec.Command(filepath.Join(folder, "llama-server"), append([]string{
			"-m", path, "-ngl", "0", "-t", "2", "-c", "1024", "-np", "1", "--host", "127.0.0.1", "--port", port}, args...)...)
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+folder)
		cmd.Dir = dir
		var log bytes.Buffer
		cmd.Stdout, cmd.Stderr = &log, &log
		require.NoError(t, cmd.Start())
		ended := make(chan struct{})
		go func() {
			cmd.Wait()
			close(ended)
		}()
		stop := func() {
			cmd.Process.Kill()
			<-ended
		}
		t.Cleanup(stop)
		if healthy("http://"+address, ended) {
			return "http://" + address, stop
		}
		stop()
		t.Logf("llama-server did not start:\n%s", &log)
	}
	require.Fail(t, "llama-server does not start")
	return "", nil
}

func healthy(address string, ended <-chan struct{}) bool {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		select {
		case <-ended:
			return false
		case <-time.After(100 * time.Millisecond):
		}
		if response, err := http.Get(address + "/health"); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return true
			}
		}
	}
	return false
}

// A served is one token that a server generated.
type served struct {
	ID      int32
	Logprob float64
	Top     []struct {
		ID      int32
		Logprob float64
	} `json:"top_logprobs"`
}

// completion is what the server goes on with after tokens, greedily: 20 tokens and their text.
func completion(t *testing.T, address string, tokens []int32) ([]served, string) {
	var answer struct {
		Content       string
		Probabilities []served `json:"completion_probabilities"`
	}
	post(t, address+"/completion", map[string]any{"prompt": tokens, "n_predict": 20, "n_probs": 10, "temperature": 0, "cache_prompt": false}, &answer)
	return answer.Probabilities, answer.Content
}

// tokensOf is a prompt's tokens.
func tokensOf(t *testing.T, path, prompt string) (all []int32) {
	for _, token := range llsteer[struct{ Tokens []struct{ ID int32 } }](t, "tokenize", "-m", path, "-p", prompt).Tokens {
		all = append(all, token.ID)
	}
	return all
}

// own is llsteer's greedy continuation.
func (s *subject) own(t *testing.T, prompt string, steerings ...string) []int32 {
	args := []string{"generate", "-m", s.path, "-n", "20", "-p", prompt}
	for _, steering := range steerings {
		args = append(args, "-s", steering)
	}
	r := llsteer[struct {
		Results []struct{ Tokens []int32 }
	}](t, args...)
	return r.Results[0].Tokens
}

// logprobs are llsteer's own log-probabilities, exact, of what the server generated: of its first
// tokens, as far as the text has the same ones when it is tokenized again.
func (s *subject) logprobs(t *testing.T, prompt, text string, tokens []served, steering string) (all []float64) {
	r := llsteer[struct {
		Tokens []struct {
			ID      int32
			Logprob float64
		}
	}](t, "logprob", "-m", s.path, "-p", prompt, "-c", text, "-s", steering)
	for i, token := range r.Tokens {
		if i == len(tokens) || token.ID != tokens[i].ID {
			break
		}
		all = append(all, token.Logprob)
	}
	return all
}

// requireSameText compares greedy continuations up to where they part, which is
// only where the server's two best tokens are nearly as likely.
func requireSameText(t *testing.T, own []int32, theirs []served) {
	for i, token := range theirs {
		if i < len(own) && own[i] == token.ID {
			continue
		}
		if i == len(own) { // at an end token, which the server lists
			require.Equal(t, i, len(theirs)-1, "llsteer ended, and the server went on")
			return
		}
		require.GreaterOrEqual(t, len(token.Top), 2)
		gap := math.Inf(1)
		for _, other := range token.Top {
			if other.ID == own[i] {
				gap = token.Logprob - other.Logprob
			}
		}
		t.Logf("the texts part at token %d, where the server's best is %.3f nats likelier than llsteer's", i, gap)
		require.Less(t, gap, tieTolerance, "token %d: llsteer has %d, the server %d", i, own[i], token.ID)
		return
	}
}

func TestLlamaServer(t *testing.T) {
	all := subjects(t)
	for i, s := range all {
		t.Run(s.name, func(t *testing.T) {
			steered := s.steering + ":" + s.strength
			t.Run("steers as llsteer does", func(t *testing.T) {
				address := server(t, s.path, "--control-vector", s.vector)
				square, most, n := 0.0, 0.0, 0
				for _, prompt := range s.prompts {
					own := s.own(t, prompt, steered)
					theirs, text := completion(t, address, tokensOf(t, s.path, prompt))
					t.Logf("%q %q", prompt, text)
					requireSameText(t, own, theirs)
					require.NotEqual(t, s.own(t, prompt), own, "the steering does nothing")
					for i, p := range s.logprobs(t, prompt, text, theirs, steered) {
						d := math.Abs(p - theirs[i].Logprob)
						square, most, n = square+d*d, max(most, d), n+1
					}
				}
				require.GreaterOrEqual(t, n, 10, "tokens to compare")
				mean := math.Sqrt(square / float64(n))
				t.Logf("log-probabilities of %d tokens: root mean square difference %.4f, largest %.4f", n, mean, most)
				require.LessOrEqual(t, mean, meanTolerance)
				require.LessOrEqual(t, most, mostTolerance)

				verdict(t, 0, "steers", s.vector, s.path, address)
				verdict(t, 0, "steers", s.steering, s.path, address, "--strength", s.strength)
			})
			t.Run("strength 0 and v with -v are no vector", func(t *testing.T) {
				minus := filepath.Join(t.TempDir(), "minus.gguf")
				s.export(t, minus, s.steering+":-"+s.strength)
				plain := server(t, s.path)
				zero := server(t, s.path, "--control-vector-scaled", s.vector+":0")
				both := server(t, s.path, "--control-vector", s.vector, "--control-vector", minus)
				for _, prompt := range s.prompts {
					tokens := tokensOf(t, s.path, prompt)
					own := s.own(t, prompt)
					without, _ := completion(t, plain, tokens)
					requireSameText(t, own, without)
					for _, address := range []string{zero, both} {
						with, _ := completion(t, address, tokens)
						require.Equal(t, without, with)
					}
					require.Equal(t, own, s.own(t, prompt, steered, s.steering+":-"+s.strength))
				}
				verdict(t, 1, "unsteered", s.vector, s.path, plain)
				verdict(t, 0, "unsteered", s.vector, s.path, zero, "--strength", "0")
			})
			t.Run("another strength", func(t *testing.T) {
				address := server(t, s.path, "--control-vector-scaled", s.vector+":0.6")
				verdict(t, 1, "other strength", s.vector, s.path, address)
				verdict(t, 0, "steers", s.vector, s.path, address, "--strength", "0.6")
			})
			t.Run("damaged vectors", func(t *testing.T) {
				data, err := os.ReadFile(s.vector)
				require.NoError(t, err)
				damaged := filepath.Join(t.TempDir(), "damaged.gguf")
				for name, content := range map[string][]byte{
					"truncated": data[:len(data)*2/3],
					// llama.cpp drops a file with any other tensor, all of it
					"another name": bytes.Replace(data, []byte("direction."), []byte("directiom."), 1),
				} {
					t.Run(name, func(t *testing.T) {
						require.NotEqual(t, data, content)
						require.NoError(t, os.WriteFile(damaged, content, 0o600))
						verdict(t, 1, "unsteered", s.vector, s.path, server(t, s.path, "--control-vector", damaged))
						refused(t, s.path, damaged)
					})
				}
			})
			t.Run("the vector of another model", func(t *testing.T) {
				other := all[(i+1)%len(all)]
				require.NotEqual(t, widthOf(t, other.vector), widthOf(t, s.vector))
				verdict(t, 1, "unsteered", s.vector, s.path, server(t, s.path, "--control-vector", other.vector))
				refused(t, s.path, other.vector)
				refused(t, s.path, other.steering)
			})
		})
	}
}

// refused makes sure that llsteer takes no such file for a model, neither to steer with nor
// to ask a server about, which it does before it asks.
func refused(t *testing.T, model, vector string) {
	t.Helper()
	for _, args := range [][]string{{"generate", "-m", model, "-s", vector, "-p", "x"}, {"verify", vector, "-m", model, "--server", "http://127.0.0.1:1"}} {
		out, err := exec.Command("../../bin/llsteer", args...).CombinedOutput()
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, 2, exit.ExitCode(), string(out))
		require.Contains(t, string(out), filepath.Base(vector), "it is about the file")
	}
}

func widthOf(t *testing.T, vector string) int {
	return llsteer[struct {
		Steering struct {
			Embd int `json:"n_embd"`
		}
	}](t, "inspect", vector).Steering.Embd
}

// verdict runs llsteer verify.
func verdict(t *testing.T, code int, want, vector, path, address string, args ...string) {
	cmd := exec.Command("../../bin/llsteer", append([]string{"verify", vector, "-m", path, "--server", address, "--json", "-q"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NotNil(t, cmd.ProcessState, err)
	t.Logf("%s%s", out, &stderr)
	require.Equal(t, code, cmd.ProcessState.ExitCode())
	var answer struct{ Verdict string }
	require.NoError(t, json.Unmarshal(out, &answer), fmt.Sprint(strings.TrimSpace(string(out))))
	require.Equal(t, want, answer.Verdict)
}

// A conversation in the chat template has the tokens that llama-server makes of it. (The server's own template engine
// adds SmolLM2's default system text where there is none; llsteer adds none.)
func TestChatTemplate(t *testing.T) {
	path := model(t, "smollm2-135m.gguf")
	address := server(t, path)
	messages := []ggmlsteer.Message{
		{Role: ggmlsteer.RoleSystem, Text: "You like the sea."},
		{Role: ggmlsteer.RoleUser, Text: "Where do you live?"},
		{Role: ggmlsteer.RoleAssistant, Text: "On a beach."},
		{Role: ggmlsteer.RoleUser, Text: "And where is <that>, s'il te plaît?"},
	}
	var views []map[string]string
	for _, m := range messages {
		views = append(views, map[string]string{"role": m.Role, "content": m.Text})
	}
	var prompt struct{ Prompt string }
	post(t, address+"/apply-template", map[string]any{"messages": views}, &prompt)
	var tokens struct{ Tokens []ggmlsteer.Token }
	post(t, address+"/tokenize", map[string]any{"content": prompt.Prompt, "add_special": true, "parse_special": true}, &tokens)

	m, err := ggmlsteer.Open(path, ggmlsteer.Options{})
	require.NoError(t, err)
	defer m.Close()
	own, err := m.ChatMessages(messages)
	require.NoError(t, err)
	require.Equal(t, tokens.Tokens, own, prompt.Prompt)
}

// post sends JSON to a server and reads its answer.
func post(t *testing.T, address string, request, answer any) {
	body, err := json.Marshal(request)
	require.NoError(t, err)
	response, err := http.Post(address, "application/json", bytes.NewReader(body))
	require.NoError(t, err)
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode, string(data))
	require.NoError(t, json.Unmarshal(data, answer), string(data))
}

// examples/yzma is another program on the libllama of that server: it writes what the
// server writes, to the letter, and TestLlamaServer compares the server with llsteer.
func TestYzma(t *testing.T) {
	s := subjects(t, "demo")[0]
	tokens := tokensOf(t, s.path, s.prompts[0])
	texts := map[string]bool{}
	for _, strength := range []string{"0", "1", "-0.5"} {
		cmd := exec.Command("go", "run", ".", s.path, s.vector, strength, s.prompts[0])
		cmd.Dir = "../../examples/yzma"
		cmd.Env = append(os.Environ(), "YZMA_LIB="+os.Getenv("LLSTEER_SERVER"))
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		require.NoError(t, err, stderr.String())
		_, text := completion(t, server(t, s.path, "--control-vector-scaled", s.vector+":"+strength), tokens)
		t.Logf("%s %q", strength, text)
		require.Equal(t, text, strings.TrimSuffix(string(out), "\n"))
		texts[text] = true
	}
	require.Len(t, texts, 3, "the strength changes nothing")
}
