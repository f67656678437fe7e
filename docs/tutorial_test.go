package docs

import (
	"context"
	"flag"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite the outputs in tutorial.md")

// A command is a block of the page that is marked sh, with the text block behind it: what it
// prints. A block that is marked otherwise is not run.
type command struct {
	text   string
	output string
	from   int // of the output in the page
}

var block = regexp.MustCompile("(?ms)^```sh\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?")

func commandsOf(page string) (all []command) {
	for _, at := range block.FindAllStringSubmatchIndex(page, -1) {
		c := command{text: page[at[2]:at[3]], from: -1}
		if at[4] >= 0 {
			c.output, c.from = page[at[4]:at[5]], at[4]
		}
		all = append(all, c)
	}
	return all
}

// run runs a command as a reader does, who has bin in PATH, and returns all it prints.
func run(t *testing.T, folder, text string) string {
	t.Helper()
	bin, err := filepath.Abs("../bin")
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(bin, "llsteer"), "make builds it")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", text)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s\n%s", text, output)
	return string(output)
}

// What the same program may print otherwise on another processor: float32 sums are rounded
// in another order, 1e-7 each, which grows over the dozens of steps of a descent. Between kernels for
// plain x86-64, Haswell and Zen 4 numbers of the page differ by up to 8e-4 of their size (after 80 steps under l1,
// whose gradient jumps), texts and counts of steps not at all.
const numberTolerance = 1e-3

var (
	times   = regexp.MustCompile(`\d+(\.\d+)? seconds|  \S+ left`)
	decimal = regexp.MustCompile(`-?\d+\.\d+(e-?\d+)?`)
)

// differs says how a line of what was printed differs from the page's, or "". Times are nobody's;
// numbers with a decimal point may differ by the tolerance, or by one in their last digit.
func differs(expected, found string) string {
	expected, found = times.ReplaceAllString(expected, ""), times.ReplaceAllString(found, "")
	if decimal.ReplaceAllString(expected, "#") != decimal.ReplaceAllString(found, "#") {
		return "the words differ"
	}
	numbers := decimal.FindAllString(found, -1)
	for i, text := range decimal.FindAllString(expected, -1) {
		a, errA := strconv.ParseFloat(text, 64)
		b, errB := strconv.ParseFloat(numbers[i], 64)
		_, digits, _ := strings.Cut(text, ".")
		last := math.Pow(10, -float64(len(digits)))
		if errA != nil || errB != nil || !(math.Abs(a-b) <= numberTolerance*math.Abs(a)+1.01*last) {
			return "expected " + text + ", found " + numbers[i]
		}
	}
	return ""
}

// difference is the first line that differs, or "".
func difference(expected, found string) string {
	a, b := strings.Split(expected, "\n"), strings.Split(found, "\n")
	for i := range max(len(a), len(b)) {
		var x, y string
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if what := differs(x, y); what != "" || i >= len(a) || i >= len(b) {
			return what + "\non the page: " + x + "\nprinted:     " + y
		}
	}
	return ""
}

// TestTutorial runs the page from its first command to its last, in one folder, and compares
// what each prints with what the page says. With -update it writes what they print.
func TestTutorial(t *testing.T) {
	data, err := os.ReadFile("tutorial.md")
	require.NoError(t, err)
	page, folder := string(data), t.TempDir()
	commands := commandsOf(page)
	require.Greater(t, len(commands), 25)
	require.Equal(t, strings.Count(page, "\n```sh\n"), len(commands))
	var outputs []string
	for _, c := range commands {
		began := time.Now()
		output := run(t, folder, c.text)
		t.Logf("%5.1f s  %s", time.Since(began).Seconds(), strings.SplitN(c.text, "\n", 2)[0])
		outputs = append(outputs, output)
		if !*update {
			require.Equal(t, "", difference(c.output, output), "%s", c.text)
		}
	}
	if !*update {
		return
	}
	for i := len(commands) - 1; i >= 0; i-- {
		if c := commands[i]; c.from >= 0 && difference(c.output, outputs[i]) != "" {
			page = page[:c.from] + outputs[i] + page[c.from+len(c.output):]
		}
	}
	require.NoError(t, os.WriteFile("tutorial.md", []byte(page), 0o666))
}

// A page whose outputs or commands were edited does not pass.
func TestEditsOfThePageAreSeen(t *testing.T) {
	for _, c := range []struct {
		expected, found string
		same            bool
	}{
		{"loss 12.3456 nats after 30 steps, 2.1 seconds", "loss 12.3457 nats after 30 steps, 0.9 seconds", true},
		{"step 10  loss 12.34  1.2s left", "step 10  loss 12.34", true},
		{"loss 12.3456", "loss 12.3600", false},
		{"loss 12.3456", "loss NaN", false},
		{"loss 0.0001", "loss 0.0003", false},
		{"after 30 steps", "after 31 steps", false},
		{"seleccione la opción", "seleccione el menú", false},
		{"one\ntwo", "one", false},
		{"one", "one\n", false},
		{"", "a warning", false},
	} {
		require.Equal(t, c.same, difference(c.expected, c.found) == "", "%q and %q", c.expected, c.found)
	}
	all := commandsOf("```sh\na\nb\n```\n\n```text\nc\n```\n\n```sh\nd\n```\n\ntext\n\n```text\nno output\n```\n")
	require.Equal(t, []command{{"a\nb\n", "c\n", 23}, {"d\n", "", -1}}, all)
}
