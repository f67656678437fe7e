package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/testdata/demo"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	// One script at a time: each program takes all cores, and ggml's threads wait for
	// one another without letting go of theirs.
	if err := flag.Set("test.parallel", "1"); err != nil {
		panic(err)
	}
	testscript.Main(m, map[string]func(){"llsteer": main})
}

// TestScripts runs testdata/script: the program as users see it.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		RequireUniqueNames: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":      code,
			"badinput":  badInputIs,
			"interrupt": interrupt,
			"killed":    killed,
			"json":      jsonIs,
			"keys":      keysAre,
			"lines":     linesAre,
			"damaged":   damagedModel,
			"vector":    writeVector,
			"bytes":     writeBytes,
			"same":      same,
			"less":      less,
			"recipe":    recipe,
			"serve":     serve,
			"within":    within,
			"npy":       npyIs,
			"shorten":   shorten,
			"timeless":  timeless,
		},
	})
}

// exitCode runs llsteer.
func exitCode(ts *testscript.TestScript, args []string) int {
	err := ts.Exec("llsteer", args...)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("llsteer did not run: %v", err)
	}
	if err == nil {
		return 0
	}
	return exit.ExitCode()
}

// code N ARGS...: llsteer ends with exit code N.
func code(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	if got := exitCode(ts, args[1:]); got != want {
		ts.Fatalf("llsteer ended with code %d, not %d:\n%s", got, want, ts.ReadFile("stderr"))
	}
}

// badinput REGEXP ARGS...: llsteer refuses its input with exit code 2 and one
// line on standard error that matches, prints no result, and the same as JSON
// with --json; and no file appears or changes.
func badInputIs(ts *testscript.TestScript, neg bool, args []string) {
	want := regexp.MustCompile(args[0])
	before := files(ts)
	if got := exitCode(ts, args[1:]); got != 2 {
		ts.Fatalf("llsteer ended with code %d, not 2:\n%s", got, ts.ReadFile("stderr"))
	}
	line, out := ts.ReadFile("stderr"), ts.ReadFile("stdout")
	if strings.Count(line, "\n") != 1 || !strings.HasPrefix(line, "llsteer: ") || !want.MatchString(line) {
		ts.Fatalf("standard error is not one line that matches %s:\n%s", want, line)
	}
	if out != "" {
		ts.Fatalf("standard output is not empty:\n%s", out)
	}
	if got := exitCode(ts, append([]string{"--json"}, args[1:]...)); got != 2 {
		ts.Fatalf("with --json llsteer ended with code %d, not 2", got)
	}
	var failure struct {
		Error *struct{ Message, Hint *string }
	}
	d := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	d.DisallowUnknownFields()
	if err := d.Decode(&failure); err != nil || failure.Error == nil || failure.Error.Message == nil || failure.Error.Hint == nil || *failure.Error.Message == "" {
		ts.Fatalf("with --json standard output is not an error object: %v\n%s", err, ts.ReadFile("stdout"))
	}
	if e := ts.ReadFile("stderr"); e != "" {
		ts.Fatalf("with --json standard error is not empty:\n%s", e)
	}
	if after := files(ts); !maps.Equal(before, after) {
		ts.Fatalf("files before: %v\nand after: %v", before, after)
	}
}

// files are those of the script's folder, with their contents.
func files(ts *testscript.TestScript) map[string]string {
	root, err := os.OpenRoot(ts.MkAbs("."))
	ts.Check(err)
	defer root.Close()
	all := map[string]string{}
	entries, err := os.ReadDir(root.Name())
	ts.Check(err)
	for _, e := range entries {
		all[e.Name()] = e.Type().String()
		if e.Type().IsRegular() {
			data, err := root.ReadFile(e.Name())
			ts.Check(err)
			all[e.Name()] = string(data)
		}
	}
	return all
}

// interrupt SIGNAL REGEXP ARGS...: llsteer gets the signal once a line of its
// standard error matches, and ends with exit code 130. Its standard output is
// left in the file interrupted.out.
func interrupt(ts *testscript.TestScript, neg bool, args []string) {
	signal := map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM}[args[0]]
	ready := regexp.MustCompile(args[1])
	path, err := exec.LookPath("llsteer")
	ts.Check(err)
	cmd := exec.Command(path, args[2:]...)
	cmd.Dir = ts.MkAbs(".")
	var out bytes.Buffer
	cmd.Stdout = &out
	stderr, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	lines := bufio.NewScanner(stderr)
	var seen strings.Builder
	for sent := false; lines.Scan(); {
		fmt.Fprintln(&seen, lines.Text())
		if !sent && ready.MatchString(lines.Text()) {
			ts.Check(cmd.Process.Signal(signal))
			sent = true
		}
	}
	io.Copy(io.Discard, stderr)
	cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 130 {
		ts.Fatalf("llsteer ended with %v, not code 130:\n%s", cmd.ProcessState, &seen)
	}
	ts.Check(os.WriteFile(ts.MkAbs("interrupted.out"), out.Bytes(), 0o666))
	ts.Check(os.WriteFile(ts.MkAbs("interrupted.err"), []byte(seen.String()), 0o666))
}

// killed FILE ARGS...: llsteer gets SIGKILL as soon as the file is there, or as another one has
// taken its place, and has written nothing to standard output by then.
func killed(ts *testscript.TestScript, neg bool, args []string) {
	path, err := exec.LookPath("llsteer")
	ts.Check(err)
	before, _ := os.Stat(ts.MkAbs(args[0]))
	cmd := exec.Command(path, args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	ts.Check(cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case <-ended:
			ts.Fatalf("llsteer ended before it was killed: %v\n%s", cmd.ProcessState, &stderr)
		case <-time.After(5 * time.Millisecond):
		}
		if now, err := os.Stat(ts.MkAbs(args[0])); err == nil && !os.SameFile(before, now) {
			break
		}
	}
	ts.Check(cmd.Process.Kill())
	<-ended
	if out.Len() > 0 {
		ts.Fatalf("standard output is not empty:\n%s", &out)
	}
}

// shorten FILE N: the file loses its last N bytes.
func shorten(ts *testscript.TestScript, neg bool, args []string) {
	text := ts.ReadFile(args[0])
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text[:len(text)-n]), 0o666))
}

// timeless FILE: what a JSON report says without the times, the memory and the file's name.
func timeless(ts *testscript.TestScript, neg bool, args []string) {
	value, _ := at(ts, args[0], ".")
	report := value.(map[string]any)
	for _, key := range []string{"seconds", "seconds_per_step", "peak_rss_bytes", "file"} {
		if _, found := report[key]; !found {
			ts.Fatalf("%s has no %s", args[0], key)
		}
		delete(report, key)
	}
	data, err := json.Marshal(report)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o666))
}

// at follows a path such as results.0.text through a JSON file; "." is all of it.
func at(ts *testscript.TestScript, file, path string) (value any, found bool) {
	d := json.NewDecoder(strings.NewReader(ts.ReadFile(file)))
	if err := d.Decode(&value); err != nil {
		ts.Fatalf("%s is not JSON: %v", file, err)
	}
	if err := d.Decode(new(any)); err != io.EOF {
		ts.Fatalf("%s holds more than one JSON value", file)
	}
	if path == "." {
		return value, true
	}
	for name := range strings.SplitSeq(path, ".") {
		switch v := value.(type) {
		case map[string]any:
			if value, found = v[name]; !found {
				return nil, false
			}
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i >= len(v) {
				return nil, false
			}
			value = v[i]
		default:
			return nil, false
		}
	}
	return value, true
}

// json FILE PATH EXPECTED: what stands there is the expected value, or of the
// expected type: number, text, list, object. With ! there is no such path.
func jsonIs(ts *testscript.TestScript, neg bool, args []string) {
	value, found := at(ts, args[0], args[1])
	if neg || !found {
		if neg == found {
			ts.Fatalf("%s: %s is there: %t", args[0], args[1], found)
		}
		return
	}
	types := map[string]any{"number": 0.0, "text": "", "list": []any{}, "object": map[string]any{}}
	if example, isType := types[args[2]]; isType {
		if reflect.TypeOf(value) != reflect.TypeOf(example) {
			ts.Fatalf("%s: %s is %v, not a %s", args[0], args[1], value, args[2])
		}
		return
	}
	var want any
	ts.Check(json.Unmarshal([]byte(args[2]), &want))
	if !reflect.DeepEqual(value, want) {
		ts.Fatalf("%s: %s is %v, not %v", args[0], args[1], value, want)
	}
}

// keys FILE PATH KEY...: the object there has exactly these keys.
func keysAre(ts *testscript.TestScript, neg bool, args []string) {
	value, _ := at(ts, args[0], args[1])
	object, isObject := value.(map[string]any)
	if !isObject {
		ts.Fatalf("%s: %s is %v, not an object", args[0], args[1], value)
	}
	got, want := slices.Sorted(maps.Keys(object)), slices.Sorted(slices.Values(args[2:]))
	if !slices.Equal(got, want) {
		ts.Fatalf("%s: %s has the keys %v, not %v", args[0], args[1], got, want)
	}
}

// lines FILE N: the file has N lines, which are left in FILE.0 and so on.
func linesAre(ts *testscript.TestScript, neg bool, args []string) {
	text := ts.ReadFile(args[0])
	if got := strconv.Itoa(strings.Count(text, "\n")); got != args[1] || !strings.HasSuffix(text, "\n") {
		ts.Fatalf("%s has %s whole lines, not %s", args[0], got, args[1])
	}
	i := 0
	for line := range strings.Lines(text) {
		ts.Check(os.WriteFile(ts.MkAbs(fmt.Sprintf("%s.%d", args[0], i)), []byte(line), 0o666))
		i++
	}
}

// damaged KIND FILE: the demo model, damaged.
func damagedModel(ts *testscript.TestScript, neg bool, args []string) {
	model := bytes.Clone(demo.Model)
	replace := func(old, new string) {
		if len(old) != len(new) || !bytes.Contains(model, []byte(old)) {
			ts.Fatalf("%q cannot be replaced by %q", old, new)
		}
		model = bytes.ReplaceAll(model, []byte(old), []byte(new))
	}
	switch args[0] {
	case "truncated":
		model = model[:len(model)/2]
	case "header": // as many tensors as 64 bits can count
		copy(model[8:16], bytes.Repeat([]byte{0xff}, 8))
	case "arch":
		replace("gemma2", "gemmaX")
	case "chat": // it has a chat template, and is none the worse for it
		model = insertKV(model, "tokenizer.chat_template", "{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}")
	case "name":
		replace("general.name", "general.nam3")
	case "weights": // the sign of a scale of one tensor's last block
		model[len(model)-34+1] ^= 0x80
	case "tokenizer":
		replace("tokenizer.ggml.model", "tokenizer.ggml.mode1")
	default:
		ts.Fatalf("no damage is called %s", args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), model, 0o666))
}

// insertKV puts a text into the metadata of a GGUF file, padded so that the
// tensors stay aligned.
func insertKV(model []byte, key, value string) []byte {
	const header, alignment, overhead, typeString = 24, 32, 8 + 4 + 8, 8
	value += strings.Repeat(" ", alignment-(overhead+len(key)+len(value))%alignment)
	kv := binary.LittleEndian.AppendUint64(nil, uint64(len(key)))
	kv = binary.LittleEndian.AppendUint32(append(kv, key...), typeString)
	kv = append(binary.LittleEndian.AppendUint64(kv, uint64(len(value))), value...)
	model = slices.Insert(model, header, kv...)
	count := model[header-8:]
	binary.LittleEndian.PutUint64(count, binary.LittleEndian.Uint64(count)+1)
	return model
}

// vector ARCH WIDTH LAYER FILE [VALUE]: a steering file of ones, or of the value.
func writeVector(ts *testscript.TestScript, neg bool, args []string) {
	width, err := strconv.Atoi(args[1])
	ts.Check(err)
	layer, err := strconv.Atoi(args[2])
	ts.Check(err)
	value := 1.0
	if len(args) > 4 {
		value, err = strconv.ParseFloat(args[4], 32)
		ts.Check(err)
	}
	v := make([]float32, width)
	for i := range v {
		v[i] = float32(value)
	}
	ts.Check(loader.Write(ts.MkAbs(args[3]), &loader.Steering{
		Kind: loader.Add, Layers: []int{layer}, Params: []loader.Parameters{{Vector: v}}, Arch: args[0], Embd: width,
	}))
}

// bytes FILE TEXT: writes a file with the text, in which escapes are as in Go
// and no newline is added.
func writeBytes(ts *testscript.TestScript, neg bool, args []string) {
	text, err := strconv.Unquote(`"` + args[1] + `"`)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o666))
}

// recipe FILE JOB: writes the recipe of a steering that inspect --json shows.
func recipe(ts *testscript.TestScript, neg bool, args []string) {
	value, found := at(ts, args[0], "steering.recipe")
	if !found {
		ts.Fatalf("%s has no recipe", args[0])
	}
	data, err := json.Marshal(value)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), data, 0o666))
}

// same FILE PATH FILE PATH: the values there are the same, or with ! are not.
func same(ts *testscript.TestScript, neg bool, args []string) {
	a, foundA := at(ts, args[0], args[1])
	b, foundB := at(ts, args[2], args[3])
	if !foundA || !foundB || reflect.DeepEqual(a, b) == neg {
		ts.Fatalf("%s %s is %v, %s %s is %v", args[0], args[1], a, args[2], args[3], b)
	}
}

// less FILE PATH FILE PATH: the first number is less than the second.
func less(ts *testscript.TestScript, neg bool, args []string) {
	a, _ := at(ts, args[0], args[1])
	b, _ := at(ts, args[2], args[3])
	x, isX := a.(float64)
	y, isY := b.(float64)
	if !isX || !isY || !(x < y) {
		ts.Fatalf("%s %s is %v, %s %s is %v", args[0], args[1], a, args[2], args[3], b)
	}
}

// npy FILE SIZE...: the file is numpy's, version 1.0, of float32 in row order and these
// dimensions. Its last rows are left in FILE.json, one after the other.
func npyIs(ts *testscript.TestScript, neg bool, args []string) {
	data := []byte(ts.ReadFile(args[0]))
	const magic = "\x93NUMPY\x01\x00"
	if !strings.HasPrefix(string(data), magic) || len(data) < 10 {
		ts.Fatalf("%s begins with %q", args[0], data[:min(len(data), 10)])
	}
	size := int(binary.LittleEndian.Uint16(data[8:]))
	if (10+size)%64 != 0 || len(data) < 10+size {
		ts.Fatalf("%s has a header of %d bytes", args[0], size)
	}
	header, rest := string(data[10:10+size]), data[10+size:]
	m := regexp.MustCompile(`^\{'descr': '<f4', 'fortran_order': False, 'shape': \(([0-9, ]+)\), \} *\n$`).FindStringSubmatch(header)
	if m == nil || m[1] != strings.Join(args[1:], ", ") {
		ts.Fatalf("%s has the header %q, and not the shape %v", args[0], header, args[1:])
	}
	elements := 1
	for _, arg := range args[1:] {
		n, err := strconv.Atoi(arg)
		ts.Check(err)
		elements *= n
	}
	values := make([]float32, elements)
	if n, err := binary.Decode(rest, binary.LittleEndian, values); err != nil || n != len(rest) {
		ts.Fatalf("%s has %d bytes of numbers, not %d: %v", args[0], len(rest), 4*elements, err)
	}
	width, err := strconv.Atoi(args[len(args)-1])
	ts.Check(err)
	text, err := json.Marshal(slices.Collect(slices.Chunk(values, width)))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".json"), text, 0o666))
}
