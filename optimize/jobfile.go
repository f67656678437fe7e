package optimize

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/llsteer/llsteer/loader"
	"go.yaml.in/yaml/v3"
)

// ReadJob reads a job file, YAML or JSON, as docs/job-file.md has it. What is
// wrong with it is an *InputError with name, line and key. A job may lack what flags
// can still give, such as its layer: that is for Validate to find.
func ReadJob(name string, data []byte) (*Job, error) {
	r := &jobReader{name: name}
	root, err := r.parse(data)
	if err != nil {
		return nil, err
	}
	job := &Job{Options: DefaultOptions()}
	keys := map[string]field{
		"layer":           func(n *yaml.Node, key string) error { return r.layers(n, key, &job.Layers) },
		"shared":          func(n *yaml.Node, key string) error { return r.boolean(n, key, &job.Shared) },
		"chat":            func(n *yaml.Node, key string) error { return r.boolean(n, key, &job.Chat) },
		"system":          func(n *yaml.Node, key string) error { return r.text(n, key, &job.System) },
		"parse_special":   func(n *yaml.Node, key string) error { return r.boolean(n, key, &job.ParseSpecial) },
		"examples":        func(n *yaml.Node, key string) error { return list(r, n, key, r.example, &job.Examples) },
		"prompts":         func(n *yaml.Node, key string) error { return list(r, n, key, r.text, &job.Prompts) },
		"src_completions": func(n *yaml.Node, key string) error { return list(r, n, key, r.text, &job.Src) },
		"dst_completions": func(n *yaml.Node, key string) error { return list(r, n, key, r.text, &job.Dst) },
		"start": func(n *yaml.Node, key string) error {
			job.Start = map[string]loader.Parameters{}
			return r.start(n, key, job.Start)
		},
	}
	for _, o := range OptionTable() {
		keys[o.Name] = func(n *yaml.Node, key string) error { return r.option(n, key, o, &job.Options) }
	}
	if err := r.mapping(root, "", keys); err != nil {
		return nil, err
	}
	return job, nil
}

// A field reads the value of one key; key is its place in the file, such as
// examples[0].prompt.
type field func(n *yaml.Node, key string) error

// maxValues bounds a job file unfolded: far more numbers than the vectors of all
// layers of a large model, and little enough for a file whose aliases multiply.
const maxValues = 1 << 22

// A jobReader checks the parsed file against what a job may hold.
type jobReader struct {
	name   string
	values int // read so far
}

func (r *jobReader) fail(n *yaml.Node, key, format string, args ...any) error {
	place := fmt.Sprintf("%s:%d: ", r.name, n.Line)
	if key != "" {
		place += key + ": "
	}
	return &loader.InputError{Message: place + fmt.Sprintf(format, args...)}
}

func (r *jobReader) expected(n *yaml.Node, key, what string) error {
	return r.fail(n, key, "expected %s, found %s", what, found(n))
}

// found says what a value is.
func found(n *yaml.Node) string {
	switch n.Kind {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "a mapping"
	}
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!str":
		return fmt.Sprintf("the text %q", shorten(n.Value))
	}
	return shorten(n.Value)
}

var yamlError = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)

// parse returns the file's only document.
func (r *jobReader) parse(data []byte) (*yaml.Node, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(jsonAsYAML(data)))
	var document, next yaml.Node
	err := decoder.Decode(&document)
	if errors.Is(err, io.EOF) {
		return nil, &loader.InputError{Message: r.name + ": the job is empty"}
	}
	if err == nil {
		if err = decoder.Decode(&next); err == nil {
			return nil, r.fail(&next, "", "expected one job, found a second document")
		}
	}
	if errors.Is(err, io.EOF) {
		return document.Content[0], nil
	}
	place, problem := r.name, err.Error()
	if m := yamlError.FindStringSubmatch(problem); m != nil {
		problem = m[2]
		if m[1] != "" {
			place += ":" + m[1]
		}
	}
	return nil, &loader.InputError{Message: fmt.Sprintf("%s: neither YAML nor JSON: %s", place, problem)}
}

var (
	// an escape, or a character that YAML takes for a line's end or does not take
	jsonSpecial   = regexp.MustCompile(`\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\.|[^\t\n\r -~]`)
	surrogatePair = len(`\ud83d\ude00`)
)

// jsonAsYAML writes the strings of JSON so that YAML reads them alike: YAML knows
// no surrogate pairs and, here, no \/, and takes some characters for the end of a
// line. Lines stay as they are. Other texts are returned unchanged.
func jsonAsYAML(data []byte) []byte {
	if !json.Valid(data) || !utf8.Valid(data) {
		return data
	}
	return jsonSpecial.ReplaceAllFunc(data, func(s []byte) []byte {
		switch {
		case len(s) == surrogatePair:
			high, _ := strconv.ParseUint(string(s[2:6]), 16, 16)
			low, _ := strconv.ParseUint(string(s[8:12]), 16, 16)
			return fmt.Appendf(nil, `\U%08x`, utf16.DecodeRune(rune(high), rune(low)))
		case string(s) == `\/`:
			return s[1:]
		case s[0] == '\\':
			return s
		}
		r, _ := utf8.DecodeRune(s)
		return fmt.Appendf(nil, `\U%08x`, r)
	})
}

// resolve follows an alias and counts the value.
func (r *jobReader) resolve(n *yaml.Node, key string) (*yaml.Node, error) {
	if r.values++; r.values > maxValues {
		return nil, r.fail(n, key, "the job has more than %d values", maxValues)
	}
	if n.Kind == yaml.AliasNode {
		return n.Alias, nil
	}
	return n, nil
}

// insteadOf says what stands for options of docs/steering.md that are no keys.
var insteadOf = map[string]string{
	"starting_vec":        "it is given as start",
	"return_loss_history": "optimize --trace FILE writes the losses of every step",
	"return_vec_history":  "optimize --trace FILE --trace-tensors writes the vectors of every step",
}

// mapping reads every key with its field.
func (r *jobReader) mapping(n *yaml.Node, key string, fields map[string]field) error {
	n, err := r.resolve(n, key)
	if err != nil {
		return err
	}
	if n.Kind != yaml.MappingNode {
		return r.expected(n, key, "keys with values")
	}
	lines := map[string]int{}
	for i := 0; i < len(n.Content); i += 2 {
		at := n.Content[i]
		k, err := r.resolve(at, key)
		if err != nil {
			return err
		}
		if k.Kind != yaml.ScalarNode {
			return r.expected(at, key, "a key")
		}
		path := strings.TrimPrefix(key+"."+k.Value, ".")
		if line, ok := lines[k.Value]; ok {
			return r.fail(at, path, "this key stands on line %d already", line)
		}
		lines[k.Value] = at.Line
		read, ok := fields[k.Value]
		if !ok {
			return r.unknown(at, path, k.Value, fields)
		}
		if err := read(n.Content[i+1], path); err != nil {
			return err
		}
	}
	return nil
}

func (r *jobReader) unknown(n *yaml.Node, path, key string, fields map[string]field) error {
	if instead, ok := insteadOf[key]; ok && path == key {
		return r.fail(n, path, "unknown key: %s", instead)
	}
	return &loader.InputError{
		Message: r.fail(n, path, "unknown key").Error(),
		Hint:    "expected one of " + strings.Join(slices.Sorted(maps.Keys(fields)), ", "),
	}
}

// list reads every item of a list.
func list[T any](r *jobReader, n *yaml.Node, key string, read func(*yaml.Node, string, *T) error, into *[]T) error {
	n, err := r.resolve(n, key)
	if err != nil {
		return err
	}
	if n.Kind != yaml.SequenceNode {
		return r.expected(n, key, "a list")
	}
	*into = make([]T, len(n.Content))
	for i, item := range n.Content {
		if err := read(item, fmt.Sprintf("%s[%d]", key, i), &(*into)[i]); err != nil {
			return err
		}
	}
	return nil
}

// scalar is a value that is neither a list nor a mapping, with one of the tags.
func (r *jobReader) scalar(n *yaml.Node, key, what string, tags ...string) (*yaml.Node, error) {
	n, err := r.resolve(n, key)
	if err != nil {
		return nil, err
	}
	if n.Kind != yaml.ScalarNode || !slices.Contains(tags, n.ShortTag()) {
		return nil, r.expected(n, key, what)
	}
	return n, nil
}

func (r *jobReader) text(n *yaml.Node, key string, into *string) error {
	n, err := r.scalar(n, key, "text (in quotes, if it looks like something else)", "!!str")
	if err == nil {
		*into = n.Value
	}
	return err
}

func (r *jobReader) boolean(n *yaml.Node, key string, into *bool) error {
	n, err := r.scalar(n, key, "true or false", "!!bool")
	if err == nil {
		*into = strings.EqualFold(n.Value, "true")
	}
	return err
}

func (r *jobReader) number(n *yaml.Node, key string, into *float64) error {
	var err error
	*into, err = r.float(n, key, 64, "a finite number")
	return err
}

func (r *jobReader) number32(n *yaml.Node, key string, into *float32) error {
	x, err := r.float(n, key, 32, "a finite number that float32 holds")
	*into = float32(x)
	return err
}

func (r *jobReader) float(n *yaml.Node, key string, bits int, what string) (float64, error) {
	n, err := r.scalar(n, key, what, "!!int", "!!float")
	if err != nil {
		return 0, err
	}
	x, err := strconv.ParseFloat(n.Value, bits)
	if err != nil || !anyNumber.holds(x) {
		return 0, r.expected(n, key, what)
	}
	return x, nil
}

// optionTags are the tags of the values that an option of a type takes.
var optionTags = map[string][]string{
	"bool":   {"!!bool"},
	"choice": {"!!str"},
	"count":  {"!!int", "!!float"}, // Set tells the difference
	"number": {"!!int", "!!float"},
}

func (r *jobReader) option(n *yaml.Node, key string, o Option, into *Options) error {
	tags := optionTags[o.Type]
	if o.absent != "" {
		tags = append(slices.Clone(tags), "!!null", "!!str")
	}
	n, err := r.scalar(n, key, o.expects(), tags...)
	if err != nil {
		return err
	}
	value := n.Value
	switch tag := n.ShortTag(); {
	case tag == "!!null":
		value = o.absent
	case tag == "!!str" && o.Type != "choice" && value != o.absent:
		return r.expected(n, key, o.expects())
	}
	if err := o.Set(into, value); err != nil {
		return r.fail(n, key, "%v, found %s", err, found(n))
	}
	return nil
}

func (r *jobReader) layers(n *yaml.Node, key string, into *Layers) error {
	n, err := r.resolve(n, key)
	if err != nil {
		return err
	}
	switch {
	case n.Kind == yaml.SequenceNode:
		err = list(r, n, key, r.layer, &into.List)
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!int":
		into.List = make([]int, 1)
		err = r.layer(n, key, &into.List[0])
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str":
		if *into, err = ParseLayers(n.Value); err != nil {
			return r.fail(n, key, "%v", err)
		}
	default:
		return r.expected(n, key, strings.TrimPrefix(layersExpected, "expected "))
	}
	if err != nil {
		return err
	}
	if err := into.validate(); err != nil {
		return r.fail(n, "", "%v", err)
	}
	return nil
}

func (r *jobReader) layer(n *yaml.Node, key string, into *int) error {
	n, err := r.scalar(n, key, "a layer's number", "!!int")
	if err != nil {
		return err
	}
	if *into, err = strconv.Atoi(n.Value); err != nil || *into < 0 || *into >= maxLayers {
		return r.expected(n, key, "a layer's number from 0 on")
	}
	return nil
}

func (r *jobReader) example(n *yaml.Node, key string, e *Example) error {
	lines := map[string]*yaml.Node{"": n}
	keep := func(read field) field {
		return func(n *yaml.Node, key string) error {
			lines[key[strings.LastIndex(key, ".")+1:]] = n
			return read(n, key)
		}
	}
	texts := func(into *[]string) field {
		return keep(func(n *yaml.Node, key string) error { return list(r, n, key, r.text, into) })
	}
	numbers := func(into *[]float64) field {
		return keep(func(n *yaml.Node, key string) error { return list(r, n, key, r.number, into) })
	}
	if err := r.mapping(n, key, map[string]field{
		"prompt":                        keep(func(n *yaml.Node, key string) error { return r.text(n, key, &e.Prompt) }),
		"src_completions":               texts(&e.Src),
		"dst_completions":               texts(&e.Dst),
		"src_completions_target_losses": numbers(&e.SrcTargets),
		"dst_completions_target_losses": numbers(&e.DstTargets),
		"token":                         func(n *yaml.Node, key string) error { return r.span(n, key, &e.Token) },
		"is_negative":                   func(n *yaml.Node, key string) error { return r.boolean(n, key, &e.Negative) },
	}); err != nil {
		return err
	}
	if lines["prompt"] == nil {
		return r.fail(n, key, "expected a prompt, found none")
	}
	if wrong, err := e.validate(); err != nil {
		return r.fail(lines[wrong], strings.TrimSuffix(key+"."+wrong, "."), "%v", err)
	}
	return nil
}

func (r *jobReader) span(n *yaml.Node, key string, into **Span) error {
	n, err := r.scalar(n, key, strings.TrimPrefix(spanExpected, "expected "), "!!int", "!!str")
	if err != nil {
		return err
	}
	if *into, err = ParseSpan(n.Value); err != nil {
		return r.fail(n, key, "%v", err)
	}
	return nil
}

func (r *jobReader) start(n *yaml.Node, key string, into map[string]loader.Parameters) error {
	n, err := r.resolve(n, key)
	if err != nil {
		return err
	}
	fields := map[string]field{}
	if n.Kind == yaml.MappingNode {
		for i := 0; i < len(n.Content); i += 2 {
			k := n.Content[i]
			layer, err := strconv.Atoi(k.Value)
			if k.Value != sharedKey && (err != nil || layer < 0 || strconv.Itoa(layer) != k.Value) {
				return r.expected(k, key, `a layer's number, or "shared"`)
			}
			fields[k.Value] = func(n *yaml.Node, key string) error {
				var p loader.Parameters
				err := r.parameters(n, key, &p)
				into[k.Value] = p
				return err
			}
		}
	}
	return r.mapping(n, key, fields)
}

func (r *jobReader) parameters(n *yaml.Node, key string, p *loader.Parameters) error {
	row := func(n *yaml.Node, key string, into *[]float32) error { return list(r, n, key, r.number32, into) }
	if err := r.mapping(n, key, map[string]field{
		"vector": func(n *yaml.Node, key string) error { return row(n, key, &p.Vector) },
		"left":   func(n *yaml.Node, key string) error { return list(r, n, key, row, &p.Left) },
		"right":  func(n *yaml.Node, key string) error { return list(r, n, key, row, &p.Right) },
	}); err != nil {
		return err
	}
	if p.Vector == nil {
		return r.fail(n, key, "expected a vector, found none")
	}
	return nil
}
