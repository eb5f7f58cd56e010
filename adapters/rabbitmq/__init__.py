"""`amqp://`, `amqps://`: RabbitMQ."""

from brokerkit.adapters.rabbitmq.adapter import RabbitAdapter

__all__ = ["RabbitAdapter"]
