package models

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The commands of docs/servers/llama-server.md run as they stand, in the folder that the page
// names and one after the other; a llama-server runs until the next one. The port is another.
func TestServerPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/servers/llama-server.md")
	require.NoError(t, err)
	bin, err := filepath.Abs("../../bin")
	require.NoError(t, err)
	dir := filepath.Join(t.TempDir(), "demo")
	llsteer[struct{}](t, "quickstart", "--save", dir)
	asked, verified := 0, 0
	stop, address := func() {}, ""
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		for line := range strings.Lines(block[1]) {
			line = strings.TrimSpace(line)
			if args, starts := strings.CutPrefix(line, "llama-server -m model.gguf "); starts {
				stop()
				fields := strings.Fields(strings.Replace(args, "--port 8080", "", 1))
				require.NotEqual(t, args, strings.Join(fields, " "), "the page has no port 8080")
				address, stop = serverIn(t, dir, "model.gguf", fields...)
				continue
			}
			cmd := exec.Command("bash", "-ec", strings.Replace(line, "http://127.0.0.1:8080", address, 1))
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
			out, err := cmd.CombinedOutput()
			t.Logf("%s\n%s", line, out)
			require.NoError(t, err)
			switch {
			case strings.HasPrefix(line, "llsteer verify"):
				verified++
			case strings.HasPrefix(line, "curl"):
				asked++
				require.Contains(t, string(out), `"text":" selecc`)
			}
		}
	}
	require.Equal(t, 3, verified)
	require.Equal(t, 1, asked)
}
