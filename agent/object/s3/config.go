package s3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"varve/agent/object"
)

// settings are what a target's URL and the environment say together.
type settings struct {
	region      string
	endpoint    string // empty: AWS
	pathStyle   bool
	credentials aws.Credentials
	caFile      string
	env         map[string]string // says by which proxy
}

// readSettings puts together what the URL says, the environment, and the
// files that the environment names. The URL comes first, then the environment.
func readSettings(ctx context.Context, u object.URL, env map[string]string) (settings, error) {
	out := settings{
		region:   cmp.Or(u.Region, env["AWS_REGION"], env["AWS_DEFAULT_REGION"]),
		endpoint: cmp.Or(u.Endpoint, env["AWS_ENDPOINT_URL_S3"], env["AWS_ENDPOINT_URL"]),
		caFile:   env["AWS_CA_BUNDLE"],
		env:      env,
		credentials: aws.Credentials{
			AccessKeyID: env["AWS_ACCESS_KEY_ID"], SecretAccessKey: env["AWS_SECRET_ACCESS_KEY"], SessionToken: env["AWS_SESSION_TOKEN"],
		},
	}
	if env["AWS_PROFILE"] != "" || env["AWS_SHARED_CREDENTIALS_FILE"] != "" || env["AWS_CONFIG_FILE"] != "" {
		if err := out.readFiles(ctx, env); err != nil {
			return settings{}, err
		}
	}
	switch key, secret := out.credentials.AccessKeyID, out.credentials.SecretAccessKey; {
	case key == "" && secret == "":
		return settings{}, &refusal{"no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"}
	case key == "":
		return settings{}, &refusal{"AWS_ACCESS_KEY_ID is missing, and AWS_SECRET_ACCESS_KEY is set"}
	case secret == "":
		return settings{}, &refusal{"AWS_SECRET_ACCESS_KEY is missing, and AWS_ACCESS_KEY_ID is set"}
	}
	if out.endpoint != "" {
		e, err := url.Parse(out.endpoint)
		if err != nil || e.Scheme != "http" && e.Scheme != "https" || e.Host == "" || e.User != nil {
			return settings{}, errors.New("the endpoint (AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL) must be http://host:port or https://host:port")
		}
	}
	if out.region == "" {
		if out.endpoint == "" {
			return settings{}, errors.New("no region; add ?region=… to the target or set AWS_REGION")
		}
		out.region = "us-east-1" // what servers other than AWS's say they are
	}
	out.pathStyle = u.PathStyle == "true" || u.PathStyle == "" && out.endpoint != ""
	return out, nil
}

// readFiles reads what is missing from the AWS command line's files. Of the
// many ways to credentials that they know, only keys written down are
// followed: the others start programs or ask servers that nobody named.
func (s *settings) readFiles(ctx context.Context, env map[string]string) error {
	profile := cmp.Or(env["AWS_PROFILE"], "default")
	home := cmp.Or(env["HOME"], os.Getenv("HOME"))
	shared, err := config.LoadSharedConfigProfile(ctx, profile, func(o *config.LoadSharedConfigOptions) {
		o.CredentialsFiles = []string{cmp.Or(env["AWS_SHARED_CREDENTIALS_FILE"], filepath.Join(home, ".aws", "credentials"))}
		o.ConfigFiles = []string{cmp.Or(env["AWS_CONFIG_FILE"], filepath.Join(home, ".aws", "config"))}
	})
	if err != nil {
		return fmt.Errorf("profile %q of the AWS files: %w", profile, err)
	}
	if !s.credentials.HasKeys() {
		s.credentials = shared.Credentials
	}
	if !s.credentials.HasKeys() {
		return fmt.Errorf("profile %q of the AWS files has no aws_access_key_id and aws_secret_access_key; other kinds of log-in are not supported", profile)
	}
	s.region = cmp.Or(s.region, shared.Region)
	s.endpoint = cmp.Or(s.endpoint, shared.BaseEndpoint)
	return nil
}

// client makes the SDK's client. Retries are ours, see object.Retry. Checksums
// are those that a call cannot do without: some servers refuse the newer ones,
// and each body is covered by its SHA-256 in the signature.
func (s settings) client() (*s3.Client, error) {
	transport, err := object.NewTransport(s.caFile, s.env)
	if err != nil {
		return nil, err
	}
	options := s3.Options{
		Region:                     s.region,
		UsePathStyle:               s.pathStyle,
		Credentials:                credentials.StaticCredentialsProvider{Value: s.credentials},
		HTTPClient:                 &client{transport},
		Retryer:                    aws.NopRetryer{},
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
		AppID:                      "varve",
	}
	if s.endpoint != "" {
		options.BaseEndpoint = &s.endpoint
	}
	return s3.New(options), nil
}
