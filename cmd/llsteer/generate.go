package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// maxBatch is how many prompts are generated side by side; more come in turns.
const maxBatch = 32

func (p *program) generate() *cobra.Command {
	var model modelFlags
	var steer, prompts []string
	var precision precision
	var phase phaseFlags
	var compare bool
	var o ggmlsteer.GenerateOptions
	cmd := &cobra.Command{
		Use:   "generate -m MODEL [-s FILE[:STRENGTH]]... -p PROMPT",
		Short: "continue prompts, steered or not",
		Long: `Continues each prompt. A positive strength steers the way the vector was found, a
negative one the other way; 1 is the vector as it is, and often too much.`,
		Example: `  llsteer optimize -m demo demo -o spanish.gguf
  llsteer generate -m demo -s spanish.gguf:0.9 --compare -p "To change the size of the window,"
  llsteer generate -m demo -s spanish.gguf:-0.9 -p "Antes de guardar el archivo,"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(prompts) == 0 {
				return badInput("", "--prompt is missing")
			}
			if model.seed > math.MaxUint32 {
				return badInput("", "--seed %d is too large for a sampler: at most %d", model.seed, uint32(math.MaxUint32))
			}
			o.Seed = uint32(model.seed)
			texts, err := p.texts("--prompt", prompts)
			if err != nil {
				return err
			}
			if o.Stop, err = p.texts("--stop", o.Stop); err != nil {
				return err
			}
			m, active, err := p.openSteered(cmd.Context(), &model, steer, &phase)
			if err != nil {
				return err
			}
			defer m.Close()
			g := &generation{program: p, model: m, options: o, precision: precision.or(ggmlsteer.Ordinary), context: model.context(m)}
			for i, text := range texts {
				tokens, err := model.promptTokens(m, text)
				if err != nil {
					return err
				}
				if err := model.fits(m, fmt.Sprintf("prompt %d", i+1), len(tokens)); err != nil {
					return err
				}
				g.prompts = append(g.prompts, tokens)
			}
			return g.run(cmd.Context(), texts, active, compare)
		},
	}
	addFlags(cmd, "Texts (@FILE reads a file, @- standard input, @@ is an @)", func(flags *pflag.FlagSet) {
		flags.StringArrayVarP(&prompts, "prompt", "p", nil, "`TEXT` to continue; several are one batch (required)")
		flags.StringArrayVar(&o.Stop, "stop", nil, "`TEXT` that ends a continuation and is left out of it; repeatable (default none)")
	})
	addFlags(cmd, "Steering", func(flags *pflag.FlagSet) {
		addSteer(flags, &steer)
		phase.add(flags)
		flags.BoolVar(&compare, "compare", false, "unsteered and steered, one after the other")
	})
	addFlags(cmd, "Generation", func(flags *pflag.FlagSet) {
		countVar(flags, &o.Tokens, "n-predict", "n", 64, 0, math.MaxInt32, "most tokens of a continuation")
		addSampling(flags, &o)
		addPrecision(flags, &precision, "llama.cpp's ordinary decoding")
	})
	model.add(cmd)
	return cmd
}

// addSampling defines how tokens are drawn.
func addSampling(flags *pflag.FlagSet, o *ggmlsteer.GenerateOptions) {
	numberVar(flags, &o.Temperature, "temp", 0, 0, math.MaxFloat32, "temperature; 0 is greedy, and the next five are not used then (default 0)")
	countVar(flags, &o.TopK, "top-k", "", 40, 0, math.MaxInt32, "draw from the K likeliest tokens; 0: all")
	numberVar(flags, &o.TopP, "top-p", 0.95, 0, 1, "draw from the likeliest tokens that together have this probability; 1: all")
	numberVar(flags, &o.MinP, "min-p", 0.05, 0, 1, "draw from tokens at least this probable, next to the likeliest; 0: all")
	numberVar(flags, &o.RepeatPenalty, "repeat-penalty", 1, math.SmallestNonzeroFloat64, math.MaxFloat32, "makes the last 64 tokens unlikelier; 1: off")
}

// A generation continues prompts, unsteered or steered.
type generation struct {
	program   *program
	model     *ggmlsteer.Model
	options   ggmlsteer.GenerateOptions
	precision ggmlsteer.Precision
	context   int // tokens
	prompts   [][]ggmlsteer.Token
	// what was generated so far, and how long it took
	tokens  int
	seconds float64
}

// continuation is one text in the JSON result.
type continuation struct {
	Text   string               `json:"text"`
	Tokens []ggmlsteer.Token    `json:"tokens"`
	Stop   ggmlsteer.StopReason `json:"stop"`
}

type generated struct {
	Prompt string `json:"prompt"`
	continuation
	Unsteered *continuation `json:"unsteered,omitempty"`
}

func (g *generation) run(ctx context.Context, texts []string, active []ggmlsteer.Active, compare bool) error {
	p := g.program
	stream := len(texts) == 1 && !p.json && isTerminal(os.Stdout)
	results := make([]generated, len(texts))
	for i, text := range texts {
		results[i].Prompt = text
	}
	for _, steered := range []bool{false, true} {
		if !steered && !compare {
			continue
		}
		heading := ""
		if compare {
			heading = map[bool]string{false: "unsteered", true: "steered"}[steered]
		}
		var onText func(int, string)
		if stream {
			fmt.Print(dim(headed(heading) + texts[0]))
			onText = func(_ int, text string) { fmt.Print(text) }
		}
		var use []ggmlsteer.Active
		if steered {
			use = active
		}
		all, err := g.batch(ctx, use, onText)
		if stream {
			fmt.Println()
		}
		if err != nil {
			return err
		}
		for i, c := range all {
			if steered {
				results[i].continuation = c
			} else {
				results[i].Unsteered = &c
			}
		}
	}
	switch {
	case p.json:
		return p.printJSON(struct {
			Results         []generated `json:"results"`
			TokensPerSecond float64     `json:"tokens_per_second"`
		}{results, g.tokensPerSecond()})
	case stream:
		return nil
	}
	return p.print(written(results))
}

// batch continues all prompts with the same steerings.
func (g *generation) batch(ctx context.Context, active []ggmlsteer.Active, onText func(int, string)) ([]continuation, error) {
	longest := 0
	for _, tokens := range g.prompts {
		longest = max(longest, len(tokens))
	}
	options := ggmlsteer.DecoderOptions{
		Context:   min(g.context, longest+min(g.options.Tokens, g.context)),
		Sequences: min(maxBatch, len(g.prompts)),
		Precision: g.precision,
	}
	d, err := g.model.NewDecoder(options)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := d.Steer(active...); err != nil {
		return nil, err
	}
	var all []continuation
	for prompts := range slices.Chunk(g.prompts, maxBatch) {
		start := time.Now()
		some, err := d.Generate(ctx, prompts, g.options, onText)
		g.seconds += time.Since(start).Seconds()
		if err != nil {
			return nil, err
		}
		for _, c := range some {
			g.tokens += len(c.Tokens)
			if c.Tokens == nil {
				c.Tokens = []ggmlsteer.Token{}
			}
			all = append(all, continuation{c.Text, c.Tokens, c.Stop})
		}
	}
	return all, nil
}

func (g *generation) tokensPerSecond() float64 {
	if g.seconds == 0 {
		return 0
	}
	return float64(g.tokens) / g.seconds
}

// written is the results as text: a lone continuation by itself, several under
// their prompts.
func written(results []generated) string {
	var b strings.Builder
	for i, r := range results {
		if len(results) > 1 {
			if i > 0 {
				b.WriteString("\n")
			}
			fmt.Fprintf(&b, "== %s\n", r.Prompt)
		}
		if r.Unsteered != nil {
			b.WriteString(headed("unsteered") + r.Unsteered.Text + "\n" + headed("steered"))
		}
		b.WriteString(r.Text + "\n")
	}
	return b.String()
}

func headed(heading string) string {
	if heading == "" {
		return ""
	}
	return "-- " + heading + "\n"
}

// dim sets text back, on a terminal.
func dim(text string) string { return "\x1b[2m" + text + "\x1b[0m" }
