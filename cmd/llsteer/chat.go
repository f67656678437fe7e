package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const (
	// chatContext is the context where the user names none: models are trained on up to a
	// million tokens, whose cache no machine holds.
	chatContext = 4096
	// maxLine bounds one message.
	maxLine = 1 << 20
)

const chatHelp = `A line is a message to the model. A line that begins with / is a command:

  /strength X [Y...]   steer with strength X from now on; with several -s, one number for
                       all or one for each. Without a number: what it is
  /off                 the same as /strength 0
  /save FILE           write the conversation, as JSON
  /reset               forget the conversation
  /help                this
  /quit                the end (or Ctrl-D)

A message that begins with / is written with two.
`

func (p *program) chat() *cobra.Command {
	var model modelFlags
	var steer []string
	var phase phaseFlags
	o := ggmlsteer.GenerateOptions{Keep: true} // what was said before, where it is steered as before
	cmd := &cobra.Command{
		Use:   "chat -m MODEL [-s FILE[:STRENGTH]]...",
		Short: "talk with a model, and steer it meanwhile",
		Long: `Talks with a model in its own chat template, on a terminal or with messages from
standard input, one a line. The strength can be changed between messages:

` + chatHelp + `
Every answer is what the model gives for the whole conversation under the strengths that
hold then: after a change it reads again what was steered otherwise. To --steer-tokens
earlier answers belong to the prompt. When the conversation outgrows the context, its oldest messages are forgotten.`,
		Example: `  llsteer chat -m MODEL.gguf -s vector.gguf:0.5
  printf 'Hello!\n/strength 1\nHello!\n' | llsteer chat -m MODEL.gguf -s vector.gguf:0`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if model.seed > math.MaxUint32 {
				return badInput("", "--seed %d is too large for a sampler: at most %d", model.seed, uint32(math.MaxUint32))
			}
			o.Seed = uint32(model.seed)
			model.chat = true
			m, active, err := p.openSteered(cmd.Context(), &model, steer, &phase)
			if err != nil {
				return err
			}
			defer m.Close()
			c := &conversation{program: p, model: m, flags: &model, options: o, steer: steer, active: active}
			return c.run(cmd.Context())
		},
	}
	addFlags(cmd, "Steering", func(flags *pflag.FlagSet) {
		addSteer(flags, &steer)
		phase.add(flags)
	})
	addFlags(cmd, "Generation", func(flags *pflag.FlagSet) {
		countVar(flags, &o.Tokens, "n-predict", "n", 512, 1, math.MaxInt32, "most tokens of an answer")
		addSampling(flags, &o)
	})
	model.add(cmd)
	cmd.Flags().Lookup("chat").Hidden = true
	cmd.Flags().Lookup("system").Usage = "system `TEXT`"
	cmd.Flags().Lookup("ctx-size").Usage = fmt.Sprintf("most tokens of the conversation; 0: %d, or the model's training context if that is less (default 0)", chatContext)
	return cmd
}

// A conversation is what chat holds from the first message to the last.
type conversation struct {
	program *program
	model   *ggmlsteer.Model
	flags   *modelFlags
	options ggmlsteer.GenerateOptions
	steer   []string // FILE[:STRENGTH]
	active  []ggmlsteer.Active

	decoder  *ggmlsteer.Decoder
	context  int
	messages []ggmlsteer.Message // without the system text
	turns    []chatTurn
	forgot   bool // that messages were forgotten is said
	// Ctrl-C on a terminal, which ends an answer that is being written, or else the program;
	// nil where nobody types: it ends the program then.
	interrupts chan os.Signal
}

// stopInterrupted is the end of an answer by Ctrl-C.
const stopInterrupted ggmlsteer.StopReason = "interrupted"

// A chatTurn is a message with its answer, in the JSON result and in what /save writes.
type chatTurn struct {
	User string `json:"user"`
	continuation
	Strengths []float64 `json:"strengths"` // of each -s
}

func (c *conversation) run(ctx context.Context) error {
	c.context = c.flags.ctxSize
	if c.context == 0 {
		c.context = min(chatContext, c.model.Info().TrainContext)
	}
	var err error
	if c.decoder, err = c.model.NewDecoder(ggmlsteer.DecoderOptions{Context: c.context}); err != nil {
		return err
	}
	defer c.decoder.Close()
	c.turns = []chatTurn{}
	talking := isTerminal(os.Stdin) && isTerminal(os.Stdout)
	if talking {
		c.program.note("/help lists commands, Ctrl-C ends an answer, Ctrl-D the conversation")
		signal.Reset(os.Interrupt) // ctx is to go on
		c.interrupts = make(chan os.Signal, 1)
		signal.Notify(c.interrupts, os.Interrupt)
		defer signal.Stop(c.interrupts)
	}
	lines := readLines(os.Stdin)
	for {
		if talking && !c.program.json {
			fmt.Print("> ")
		}
		var next line
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.interrupts:
			return errInterrupted
		case next = <-lines:
		}
		if next.err == io.EOF {
			break
		}
		end := false
		if err = next.err; err == nil {
			end, err = c.hear(ctx, next.text)
		}
		var input *loader.InputError
		if err != nil && talking && errors.As(err, &input) && next.err == nil {
			c.program.note("%s", input.Message) // to be typed again
			continue
		}
		if err != nil {
			return err
		}
		if end {
			break
		}
	}
	if c.program.json {
		return c.program.printJSON(map[string]any{"turns": c.turns})
	}
	return nil
}

type line struct {
	text string
	err  error
}

// readLines reads in the background, so that an interrupt need not wait for a line.
func readLines(r io.Reader) <-chan line {
	lines := make(chan line)
	go func() {
		s := bufio.NewScanner(r)
		s.Buffer(nil, maxLine)
		for s.Scan() {
			lines <- line{text: s.Text()}
		}
		err := s.Err()
		switch {
		case err == nil:
			err = io.EOF
		case errors.Is(err, bufio.ErrTooLong):
			err = badInput("", "a message is longer than %d MiB", maxLine>>20)
		default:
			err = badInput("", "standard input: %s", reason(err))
		}
		lines <- line{err: err}
	}()
	return lines
}

// hear takes a line, and says whether it was the last.
func (c *conversation) hear(ctx context.Context, text string) (end bool, err error) {
	if !utf8.ValidString(text) {
		return false, badInput("messages are UTF-8", "byte %d of a message is not UTF-8", invalidByte(text))
	}
	if strings.TrimSpace(text) == "" {
		return false, nil
	}
	if rest, escaped := strings.CutPrefix(text, "//"); escaped {
		return false, c.answer(ctx, "/"+rest)
	}
	if !strings.HasPrefix(text, "/") {
		return false, c.answer(ctx, text)
	}
	command, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
	rest = strings.TrimSpace(rest)
	switch command {
	case "/strength":
		return false, c.setStrength(strings.Fields(rest))
	case "/off":
		return false, c.setStrength([]string{"0"})
	case "/save":
		return false, c.save(rest)
	case "/reset":
		c.messages, c.forgot = nil, false
		c.program.note("the conversation begins anew")
	case "/help":
		c.program.note("%s", strings.TrimSpace(chatHelp))
	case "/quit":
		return true, nil
	default:
		return false, badInput("/help lists them", "there is no command %s", command)
	}
	return false, nil
}

// setStrength gives all steerings one strength, or each its own.
func (c *conversation) setStrength(args []string) error {
	if len(c.active) == 0 {
		return badInput("start with -s FILE", "there is no steering to change")
	}
	if len(args) > 1 && len(args) != len(c.active) {
		return badInput("", "%d strengths for %d steerings", len(args), len(c.active))
	}
	var strengths []float64
	for _, arg := range args {
		x, err := strconv.ParseFloat(arg, 64)
		if err != nil || math.IsNaN(x) || math.Abs(x) > math.MaxFloat32 {
			return badInput("", "the strength %q is not a finite number", arg)
		}
		strengths = append(strengths, x)
	}
	if len(strengths) > 0 {
		for i := range c.active {
			c.active[i].Strength = strengths[min(i, len(strengths)-1)]
		}
	}
	for i, a := range c.active {
		path, _ := loader.ParseActive(c.steer[i])
		c.program.note("%s at strength %v", path, a.Strength)
	}
	return nil
}

// answer takes a message and writes the model's answer, as it comes.
func (c *conversation) answer(ctx context.Context, text string) error {
	messages := append(c.messages[:len(c.messages):len(c.messages)], ggmlsteer.Message{Role: ggmlsteer.RoleUser, Text: text})
	messages, tokens, err := c.fit(messages)
	if err != nil {
		return err
	}
	if err := c.decoder.Steer(c.active...); err != nil {
		return err
	}
	var printed error
	onText := func(_ int, piece string) {
		if printed == nil && !c.program.json {
			printed = c.program.print(piece)
		}
	}
	writing, end := context.WithCancel(ctx)
	defer end()
	go func() {
		select {
		case <-c.interrupts:
			end()
		case <-writing.Done():
		}
	}()
	all, err := c.decoder.Generate(writing, [][]ggmlsteer.Token{tokens}, c.options, onText)
	if err != nil && writing.Err() != nil && ctx.Err() == nil {
		all[0].Stop, err = stopInterrupted, nil
	}
	if err == nil {
		err = printed
	}
	if !c.program.json {
		fmt.Println()
	}
	if err != nil {
		return err
	}
	turn := chatTurn{User: text, continuation: continuation{all[0].Text, all[0].Tokens, all[0].Stop}, Strengths: []float64{}}
	if turn.Tokens == nil {
		turn.Tokens = []ggmlsteer.Token{}
	}
	for _, a := range c.active {
		turn.Strengths = append(turn.Strengths, a.Strength)
	}
	c.turns = append(c.turns, turn)
	c.messages = append(messages, ggmlsteer.Message{Role: ggmlsteer.RoleAssistant, Text: turn.Text})
	return nil
}

// fit forgets the oldest messages, a question with its answer each time, until
// the rest leaves room for an answer.
func (c *conversation) fit(messages []ggmlsteer.Message) ([]ggmlsteer.Message, []ggmlsteer.Token, error) {
	room := min(c.options.Tokens, c.context/4)
	for {
		all := messages
		if c.flags.system != "" {
			all = append([]ggmlsteer.Message{{Role: ggmlsteer.RoleSystem, Text: c.flags.system}}, messages...)
		}
		tokens, err := c.model.ChatMessages(all)
		switch {
		case err != nil:
			return nil, nil, err
		case len(messages) > 1 && len(tokens)+room > c.context:
			messages = messages[2:]
			if !c.forgot {
				c.program.note("the conversation is longer than the context of %d tokens: its oldest messages are forgotten", c.context)
				c.forgot = true
			}
		case len(tokens) > c.context:
			return nil, nil, badInput("", "the message has %d tokens with its template, and the context is %d", len(tokens), c.context)
		default:
			return messages, tokens, nil
		}
	}
}

// save writes the conversation, forgotten messages included.
func (c *conversation) save(path string) error {
	if path == "" {
		return badInput("/save FILE", "/save needs a file")
	}
	inputs := []string{c.flags.path}
	for _, spec := range c.steer {
		file, _ := loader.ParseActive(spec)
		inputs = append(inputs, file)
	}
	if err := checkOutputs(map[string]string{"/save": path}, inputs...); err != nil {
		return err
	}
	saved := struct {
		Model  string     `json:"model"`
		Steer  []string   `json:"steer"`
		System string     `json:"system,omitempty"`
		Turns  []chatTurn `json:"turns"`
	}{c.model.Info().Name, []string{}, c.flags.system, c.turns}
	for _, spec := range c.steer {
		file, _ := loader.ParseActive(spec)
		saved.Steer = append(saved.Steer, file)
	}
	data, err := encodeJSON(saved)
	if err != nil {
		return err
	}
	if err := writeFile(path, data); err != nil {
		return err
	}
	c.program.note("written: %s", path)
	return nil
}
