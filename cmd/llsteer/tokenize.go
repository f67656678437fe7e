package main

import (
	"fmt"
	"strings"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (p *program) tokenize() *cobra.Command {
	var model modelFlags
	var prompts []string
	cmd := &cobra.Command{
		Use:   "tokenize -m MODEL -p TEXT",
		Short: "tokens of a text, with their positions",
		Long: `Prints position, id and text of each token. Positions are what a job's "token"
counts; position 0 is the model's own first token, where it adds one.`,
		Example: `  llsteer tokenize -m demo -p "When you open the program,"`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := p.onlyText("--prompt", prompts)
			if err != nil {
				return err
			}
			m, err := p.open(cmd.Context(), &model)
			if err != nil {
				return err
			}
			defer m.Close()
			ids, err := model.promptTokens(m, text)
			if err != nil {
				return err
			}
			if model.ctxSize > 0 {
				if err := model.fits(m, "the text", len(ids)); err != nil {
					return err
				}
			}
			tokens := tokensOf(m, ids)
			if p.json {
				return p.printJSON(map[string][]token{"tokens": tokens})
			}
			var b strings.Builder
			for _, t := range tokens {
				fmt.Fprintf(&b, "%5d %7d  %q\n", t.Position, t.ID, t.Text)
			}
			return p.print(b.String())
		},
	}
	addFlags(cmd, "Text", func(flags *pflag.FlagSet) {
		flags.StringArrayVarP(&prompts, "prompt", "p", nil, "the `TEXT`; @FILE reads a file, @- standard input, @@ is an @ (required)")
	})
	model.add(cmd)
	return cmd
}

// A token is one of a text in the JSON result.
type token struct {
	Position int    `json:"position"`
	ID       int32  `json:"id"`
	Text     string `json:"text"`
}

func tokensOf(m *ggmlsteer.Model, ids []ggmlsteer.Token) []token {
	tokens := make([]token, len(ids))
	for i, id := range ids {
		tokens[i] = token{i, id, m.Text(ids[i:i+1], true)}
	}
	return tokens
}
