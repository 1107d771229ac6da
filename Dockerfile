# CPU:  docker build -t mgen .
# CUDA: docker build -t mgen --build-arg TORCH_INDEX=https://pypi.org/simple .
# Run:  docker run --rm -v "$PWD:/data" -w /data mgen run sequence_regression --data.path my.tsv
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /opt/mgen
COPY requirements.txt ./
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.txt)" \
    && pip install --no-cache-dir -r requirements.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e .
ENTRYPOINT ["mgen"]
CMD ["list"]
